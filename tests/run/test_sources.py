"""Which data loader the samples come from: by name, several at once, one without a dataset, images of unlike sizes."""

import pytest
import torch
from pytorch_lightning.utilities import CombinedLoader
from tiny import Images, TinyModule, loader, trainer
from torch.utils.data import BatchSampler, DataLoader, Dataset, Subset, SubsetRandomSampler

from lightning_gradcam import Batch, GradCAMCallback
from lightning_gradcam.run.samples import load


class Quiet(TinyModule):
    """Takes batches of any form from any loader in its validation."""

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        pass

    test_step = validation_step


def watched(val, module=None, callback=None, **options):
    """Fit and return the callback's fixed batch."""
    callback = callback or GradCAMCallback(**options)
    trainer(callback, max_epochs=1).fit(module or Quiet(), loader(), val)
    return callback._session.probe.batch


# By name


def test_the_key_names_a_loader_of_which_sixteen_are_taken(caplog):
    caplog.set_level("INFO")
    batch = watched({"val_a": loader(Images(9)), "val_b": loader(Images(40))}, samples="val_b")
    assert torch.equal(batch.images, Images(40).images[[i * 40 // 16 for i in range(16)]])
    assert "from the first of" not in caplog.text


@pytest.mark.parametrize(
    ("val", "keys"), [({"val_a": loader(), "val_b": loader()}, r"\['val_a', 'val_b'\]"), (loader(), r"\[\]")]
)
def test_an_unknown_key_is_refused_and_the_keys_are_told(val, keys):
    with pytest.raises(ValueError, match=rf"`samples` must be the key of a validation .* one of {keys}, got 'val_c'"):
        watched(val, samples="val_c")


class TellsLoaders(Quiet):
    """Its transfer hook does with each loader's batches something of their own."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch[0] + dataloader_idx, batch[1]


def test_the_transfer_hooks_get_the_number_of_the_loader():
    loaders = {"empty": loader(Images(0)), "a": loader(Images(9)), "b": loader(Images(10))}
    with pytest.warns(UserWarning, match="Total length of .* across ranks is zero"):
        batch = watched(loaders, TellsLoaders(), samples="b")
    torch.testing.assert_close(batch.images, Images(10).images + 2)
    with pytest.warns(UserWarning, match="Total length of .* across ranks is zero"):
        batch = watched(loaders, TellsLoaders(), samples=3)
    torch.testing.assert_close(batch.images, Images(9).images[[0, 3, 6]] + 1)


def test_the_loaders_are_those_of_the_loop_that_runs():
    """Lightning's `trainer.val_dataloaders` are those of an earlier `validate` until the `fit` has made its own."""
    callback = GradCAMCallback(samples=2)
    run = trainer(callback, max_epochs=1, num_sanity_val_steps=0)
    run.validate(Quiet(), loader(Images(9)), verbose=False)
    run.fit(Quiet(), loader(), loader(Images(10)))
    assert torch.equal(callback._session.probe.batch.images, Images(10).images[[0, 5]])


# Several at once


def first_of_both(batch):
    images, labels = batch["a"]
    return Batch(images, labels, inputs=batch["b"])


@pytest.mark.parametrize("mode", ["max_size", "min_size", "max_size_cycle"])
@pytest.mark.parametrize("sanity_steps", [0, 2])
def test_loaders_whose_batches_come_together_give_one_batch_of_each(mode, sanity_steps):
    seen = []

    class Together(Quiet):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            seen.append(batch)

    callback = GradCAMCallback(samples=4, batch_fn=first_of_both)
    val = CombinedLoader({"a": loader(Images(9)), "b": [loader(Images(10)), loader(Images(12))]}, mode)
    trainer(callback, max_epochs=1, num_sanity_val_steps=sanity_steps).fit(Together(), loader(), val)
    batch = callback._session.probe.batch
    assert torch.equal(batch.images, Images(9).images[[0, 2, 4, 6]])
    (one, _), (two, labels) = batch.inputs
    assert torch.equal(one, Images(10).images[[0, 2, 5, 7]])
    assert torch.equal(two, Images(12).images[[0, 3, 6, 9]])
    assert labels.tolist() == [0, 0, 0, 0]
    assert batch.ids == range(4)  # the loaders differ in their indices
    assert (seen[0].keys(), type(seen[0]["b"])) == ({"a", "b"}, list)


def test_loaders_that_come_together_and_agree_keep_their_indices():
    val = CombinedLoader({"a": loader(Images(9)), "b": loader(Images(9))}, "min_size")
    batch = watched(val, samples=[5, 7], batch_fn=first_of_both)
    assert batch.ids == [5, 7]
    assert torch.equal(batch.images, batch.inputs[0])
    assert watched(val, samples="b").ids == list(range(9))
    assert watched(val, samples=Subset(Images(), [1, 2])).ids == [0, 1]


def test_loaders_in_turn_are_read_as_before():
    val = CombinedLoader({"a": loader(Images(9)), "b": loader(Images(10))}, "sequential")
    assert torch.equal(watched(val, samples=3).images, Images(9).images[[0, 3, 6]])


# Without a dataset


class Stream:
    """A loader that only hands out batches, and counts how often it was asked."""

    def __init__(self, length=20, size=8):
        self.images, self.size, self.passes = Images(length), size, 0

    def __iter__(self):
        self.passes += 1
        for start in range(0, len(self.images), self.size):
            part = slice(start, start + self.size)
            yield self.images.images[part].clone(), self.images.labels[part].clone()


class Scales(Quiet):
    """Doubles images on their way, and spoils them in its validation."""

    def __init__(self):
        super().__init__()
        self.transfers = 0

    def on_after_batch_transfer(self, batch, dataloader_idx):
        self.transfers += 1
        return batch[0] * 2, batch[1]

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        batch[0].zero_()


@pytest.mark.parametrize("sanity_steps", [0, 2])
def test_a_loader_without_a_dataset_gives_its_first_batch(sanity_steps, caplog):
    caplog.set_level("INFO")
    outcomes = []
    for with_it in (True, False):
        torch.manual_seed(0)
        callback, module, val = GradCAMCallback("net.4", samples=5), Scales(), Stream()
        run = trainer(*[callback] * with_it, max_epochs=2, num_sanity_val_steps=sanity_steps)
        run.fit(module, loader(), val)
        outcomes.append((val.passes, module.transfers))
        if with_it:
            probe, history = callback._session.probe, callback._session.history
            assert torch.equal(probe.batch.images, Images(20).images[:5] * 2)
            assert probe.batch.images.untyped_storage().nbytes() == 5 * 3 * 16 * 16 * 4  # nothing more is kept
            assert (probe.batch.ids, probe.fingerprint.length) == (range(5), None)
            assert history.count == (3 if sanity_steps else 2)
            assert callback._session.first_batch is None
    assert outcomes[0] == outcomes[1]
    told = caplog.text.count("takes its first look with the first validation: the data loader, a Stream, has no `data")
    assert told == (sanity_steps == 0)


def test_waiting_is_told_once_and_ends_with_the_first_validation(caplog):
    caplog.set_level("INFO")
    callback = GradCAMCallback(samples=5)
    run = trainer(callback, max_epochs=4, num_sanity_val_steps=0, check_val_every_n_epoch=3)
    run.fit(Quiet(), loader(), Stream())
    assert caplog.text.count("takes its first look with the first validation") == 1
    assert [frame.epoch for frame in callback._session.history.tracks["gradcam"].frames] == [2, 3]


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_a_loader_without_a_dataset_outside_a_fit(verb):
    callback = GradCAMCallback(samples=5)
    getattr(trainer(callback), verb)(Quiet(), Stream(), verbose=False)
    assert torch.equal(callback._session.probe.batch.images, Images(20).images[:5])


def test_only_the_chosen_loader_without_a_dataset_is_copied():
    loaders = {"a": loader(Images(9)), "b": Stream(20), "c": Stream(22)}
    assert torch.equal(watched(loaders, samples="c").images, Images(22).images[:8])
    assert torch.equal(watched(loaders, samples=3).images, Images(9).images[[0, 3, 6]])


def test_a_batch_of_loaders_together_serves_where_one_has_no_dataset():
    val = CombinedLoader({"a": loader(Images(9)), "b": Stream(20)}, "min_size")
    batch = watched(val, samples=4, batch_fn=first_of_both)
    assert torch.equal(batch.images, Images(9).images[:4])
    assert torch.equal(batch.inputs[0], Images(20).images[:4])


def test_what_a_loader_without_a_dataset_cannot_give():
    with pytest.raises(ValueError, match="`samples` as indices needs a data loader with a `dataset`, a Stream has"):
        watched(Stream(), samples=[0, 1])
    with pytest.raises(ValueError, match="has no `dataset` to take samples from; pass a dataset of your own"):
        trainer(GradCAMCallback(samples=4), max_epochs=1).fit(TinyModule(), Stream())
    assert watched(Stream(), samples=Images(3)).ids == [0, 1, 2]


def test_no_batch_is_copied_where_a_dataset_is(monkeypatch):
    monkeypatch.setattr("lightning_gradcam.run.session.copy_of_batch", lambda batch: pytest.fail("copied"))
    watched(loader(), samples=4)
    watched({"a": loader(Images(9)), "b": Stream()}, samples=4)


# Unlike sizes


class Sizes(Dataset):
    """Images of the widths that are named, their index as their brightness."""

    def __init__(self, widths, workers_only=False):
        self.widths, self.read, self.workers_only = widths, [], workers_only

    def __len__(self):
        return len(self.widths)

    def __getitem__(self, index):
        assert not self.workers_only or torch.utils.data.get_worker_info()
        self.read.append(index)
        return torch.full((3, 16, self.widths[index]), index / 100), index % 3


def by_width(data, **options):
    """Batches of images of one size, as a user's loader makes them."""
    wide = [i for i in range(len(data)) if data.widths[i] > 16]
    narrow = [i for i in range(len(data)) if data.widths[i] <= 16]
    return DataLoader(data, batch_sampler=[part for part in (narrow, wide) if part], **options)


@pytest.mark.parametrize(
    ("widths", "number", "indices"),
    [
        ([16, 16, 16, 16, 16, 16, 24, 16, 16], 3, [0, 3, 7]),  # 6 is wide: the next one
        ([16, 16, 16, 24, 24, 24], 3, [0, 1, 2]),  # 4 is wide and so are all behind it: from the start on
        ([24, 16, 16, 16, 24, 24], 3, [0, 4, 5]),  # 2 is narrow, and the first decides
        ([16, 24, 24, 24, 24, 24], 3, [0]),
        ([16, 16, 24, 24, 16, 16], 6, [0, 1, 4, 5]),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_samples_of_another_size_than_the_first_are_replaced(widths, number, indices, workers, caplog):
    caplog.set_level("INFO")
    data = Sizes(widths, workers_only=bool(workers))
    (images, _), found, length = load(by_width(data, num_workers=workers), number)
    assert (found, length) == (indices, len(widths))
    torch.testing.assert_close(images[:, 0, 0, 0], torch.tensor(indices) / 100)
    assert (
        f"of {number} samples have images of another size than (3, 16, {widths[0]}), that of the first" in caplog.text
    )
    missing = number - len(indices)
    assert (f"for {missing} there is none" in caplog.text) == (missing > 0)


def test_replacements_come_from_the_part_that_the_loader_draws_from():
    part = BatchSampler(SubsetRandomSampler([0, 2, 4, 6]), 4, False)
    data = Sizes([16, 16, 16, 16, 24, 16, 16])
    assert load(DataLoader(data, batch_sampler=part), 2)[1] == [0, 6]


def test_nothing_is_read_twice_where_the_loader_can_join_them():
    data = Sizes([16, 24] * 4)
    batch, indices, _ = load(by_width(data, collate_fn=list), 4)
    assert (len(batch), indices, data.read) == (4, [0, 2, 4, 6], [0, 2, 4, 6])


def test_another_failure_of_the_collation_stays_what_it_is():
    def broken(items):
        raise KeyError("caption")

    with pytest.raises(KeyError, match="caption"):
        load(by_width(Sizes([16] * 8), collate_fn=broken), 4)


def test_named_samples_of_unlike_sizes_are_refused():
    data = Sizes([16, 16, 24])
    expected = r"0 is \(3, 16, 16\), 2 is \(3, 16, 24\); name samples of one size, or give the loader a `collate_fn`"
    for samples in ([0, 2], Subset(data, [0, 2])):
        sizes = expected if samples == [0, 2] else expected.replace("2 is", "1 is")
        with pytest.raises(ValueError, match=f"the images that `samples` names are of unlike sizes.* {sizes}"):
            load(by_width(data), samples)


def test_sizes_in_a_run_and_what_was_said(caplog):
    caplog.set_level("INFO")
    val = by_width(Sizes([16] * 8 + [24] * 8))
    batch = watched(val, samples=4, target="predicted")
    assert batch.ids == [0, 1, 2, 4]
    assert caplog.text.count("2 of 4 samples have images of another size") == 1


@pytest.mark.parametrize("form", ["dict", "array", "picture"])
def test_the_size_of_an_image_in_items_of_many_forms(form):
    import numpy as np
    from PIL import Image

    from lightning_gradcam.run.sizes import image_size

    items = {
        "dict": {"boxes": torch.zeros(5, 4), "image": torch.zeros(3, 8, 6), "name": "a.png"},
        "array": (1, np.zeros((3, 8, 6)), torch.zeros(3, 8, 7)),
        "picture": [Image.new("RGB", (6, 8)), 1],
    }
    assert image_size(items[form]) == (3, 8, 6)
    assert image_size((1, "a", torch.tensor(3))) is None
