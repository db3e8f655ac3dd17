"""What a run learns of the labels from the dataset, and how."""

import os

import pytest
import torch
import torch.nn.functional as F
from tiny import TinyModule, trainer
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from lightning_gradcam import GradCAMCallback, Record
from lightning_gradcam.run.dataset_labels import number_of_classes

IMAGES = torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))
ONE_HOT = F.one_hot(torch.arange(24) % 3, 3)


class Rows(Dataset):
    """Rows of labels in dicts, so that there is no list of them."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return {"image": IMAGES[index], "label": self.rows[index]}


class Reads(TinyModule):
    def training_step(self, batch, batch_idx):
        return self(batch["image"]).square().mean()

    def validation_step(self, batch, batch_idx):
        pass


def multilabel(dataset, **options):
    callback = GradCAMCallback(samples=4, record="record")
    loader = DataLoader(dataset, 8, **options)
    trainer(callback, max_epochs=1).fit(Reads(), loader, loader)
    return callback._session.probe.batch.multilabel


def test_a_row_that_names_two_classes_anywhere_makes_all_of_them_such():
    rows = ONE_HOT.clone()
    assert multilabel(Rows(rows)) is False
    rows[7, :] = 1
    assert multilabel(Rows(rows)) is True


def test_labels_are_read_as_the_loader_reads_them():
    def collate(items):
        rows = torch.stack([item["label"] for item in items])
        rows[[item["index"] == 7 for item in items]] = 1
        return {"image": torch.stack([item["image"] for item in items]), "label": rows}

    class Indexed(Rows):
        def __getitem__(self, index):
            return super().__getitem__(index) | {"index": index, "text": None}  # which no other collation takes

    assert multilabel(Indexed(ONE_HOT), collate_fn=collate) is True


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork")
def test_a_dataset_that_belongs_to_its_workers_is_not_read_outside_them():
    class Owned(Rows):
        owner = None

        def __getitem__(self, index):
            self.owner = self.owner or os.getpid()
            assert self.owner == os.getpid() != main
            return super().__getitem__(index)

    main = os.getpid()
    assert multilabel(Owned(ONE_HOT), num_workers=1) is False


def test_where_no_other_labels_can_be_had_the_reading_is_said(caplog):
    class Stream(IterableDataset):
        def __iter__(self):
            return ({"image": IMAGES[index], "label": ONE_HOT[index]} for index in range(24))

    with caplog.at_level("INFO"):
        assert multilabel(Stream()) is False
    assert "reads a row of labels as one class; `Batch(multilabel=True)` says otherwise" in caplog.text
    assert (Record.open("record").samples["of_label"] > 0).all()


def test_several_images_of_an_index_are_numbered():
    def crops(items):
        return {"image": torch.cat([torch.stack([item["image"], item["image"]]) for item in items])}

    callback = GradCAMCallback(samples=2, target=0)
    loader = DataLoader(Rows(ONE_HOT), 8, collate_fn=crops)
    trainer(callback, max_epochs=1).fit(Reads(), loader, loader)
    assert callback._session.probe.batch.ids == ["#0/1", "#0/2", "#12/1", "#12/2"]


def test_far_more_outputs_than_the_datasets_labels_name_are_no_classes():
    class Many(TinyModule):
        def __init__(self):
            super().__init__()
            self.net[-1] = torch.nn.Linear(8, 16)

    class Listed(Dataset):
        targets = (torch.arange(24) % 3).tolist()

        def __len__(self):
            return 24

        def __getitem__(self, index):
            return IMAGES[index], self.targets[index]

    loader = DataLoader(Listed(), 8)
    with pytest.warns(UserWarning, match=r"16 outputs, and the dataset's labels name 3 classes.*EmbeddingTarget\(\)"):
        trainer(GradCAMCallback(samples=4, record="many"), max_epochs=1).fit(Many(), loader, loader)
    assert set(Record.open("many").samples["predicted"].flatten()) == {-1}


def test_the_classes_of_a_dataset_are_counted_without_a_list_of_its_values(monkeypatch):
    def refuse(tensor):
        raise AssertionError("as of a dataset of masks, which would be millions of numbers")

    labels = torch.arange(24) % 3
    whole, masks = TensorDataset(IMAGES, labels), TensorDataset(IMAGES, torch.ones(24, 16, 16).long())
    monkeypatch.setattr(torch.Tensor, "tolist", refuse)
    assert number_of_classes(whole) == 3
    assert number_of_classes(Subset(whole, [0, 3, 4])) == 2
    assert number_of_classes(masks) is None
