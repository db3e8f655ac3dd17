"""The examples of volumes and clips: what is said of the data is true of the voxels, and what the runs show; `slow`."""

import pytest
import torch
from tiny import events
from torch.utils.data import DataLoader

from lightning_gradcam import Record


@pytest.fixture(scope="module")
def volume(imported):
    return imported("volume")


@pytest.fixture(scope="module")
def clip(imported):
    return imported("clip")


@pytest.fixture(scope="module")
def volumes(volume):
    """All held-out volumes, with the marker and without."""
    return [next(iter(DataLoader(volume.DigitsInNoise(marked), batch_size=400))) for marked in (True, False)]


@pytest.fixture(scope="module")
def clips(clip):
    return next(iter(DataLoader(clip.MovingDigits(), batch_size=400)))


@pytest.mark.parametrize("data", ["volume", "clip"])
def test_a_held_out_sample_is_always_the_same_and_a_training_sample_is_not(volume, clip, data):
    def dataset(**options):
        return volume.DigitsInNoise(True, **options) if data == "volume" else clip.MovingDigits(**options)

    one, two = dataset(), dataset()
    for index in (0, 7, len(one) - 1):
        for key, value in one[index].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(two[index][key]))
    training = dataset(train=True)
    assert not torch.equal(training[0]["image"], training[0]["image"])


def test_no_digit_is_both_trained_on_and_held_out(volume):
    held_out, training = volume.DigitsInNoise(True).digits, volume.DigitsInNoise(True, train=True).digits
    assert len(held_out) + len(training) == 720
    assert {digit.numpy().tobytes() for digit in held_out}.isdisjoint(digit.numpy().tobytes() for digit in training)


def test_the_digit_of_a_volume_lies_in_its_box_and_the_marker_in_its_own(volume, volumes):
    marked, bare = volumes
    size = marked["image"].shape[2:]
    digit, marker = (volume.box_masks(marked[region], size).bool() for region in ("digit", "marker"))
    assert not (digit & marker).any()
    changed = marked["image"][:, 0] != bare["image"][:, 0]
    assert changed.flatten(1).any(1).all()
    assert not (changed & ~marker).any()

    body = bare["image"][:, 0] * digit
    assert (body.flatten(1).amax(1) > 0.6).all()  # noise ends at 0.3 and a little
    assert (bare["image"][:, 0] * ~digit).amax() < 0.6
    ink = volume.DigitsInNoise(False).digits
    noise = torch.stack(
        [image[digit[i]].reshape(ink[i].shape) - 0.5 * ink[i] for i, image in enumerate(bare["image"][:, 0])]
    )
    assert noise.std() < 0.1


def test_the_marker_tells_the_class_and_only_the_class(volume, volumes):
    marked, bare = volumes
    changed = (marked["image"] != bare["image"])[:, 0]
    seen = {}
    for label, where in zip(marked["label"].tolist(), changed, strict=True):
        assert torch.equal(seen.setdefault(label, where), where)
    extents = [[len(set(axis)) for axis in where.nonzero().T.tolist()] for _, where in sorted(seen.items())]
    assert extents == [[8, 2, 2], [2, 8, 2], [2, 2, 8], [4, 4, 4]]


def test_the_digit_of_a_clip_moves_by_its_direction_through_its_mask(clip, clips):
    masks = clips["digit"].bool()
    assert clips["image"].shape == (400, clip.FRAMES, 3, clip.SIDE, clip.SIDE)
    assert (masks.sum((2, 3)) == clip.DIGIT**2).all()
    for label, mask in zip(clips["label"].tolist(), masks, strict=True):
        starts = torch.stack([frame.nonzero().amin(0) for frame in mask]).flip(1)  # x, y
        steps = (starts[1:] - starts[:-1]).unique(dim=0)
        expected = [clip.STEP * towards for towards in clip.DIRECTIONS[clip.MovingDigits.classes[label]]]
        assert steps.tolist() == [expected]


def test_nothing_moves_but_the_digit(clips):
    images, masks = clips["image"], clips["digit"].bool()[:, :, None]
    ever = masks.any(1, keepdim=True)
    assert (images == images[:, :1])[~ever.expand_as(images)].all()
    darkest = images.amin(2, keepdim=True)  # ink is white, the photo at most 0.7
    assert (darkest * ~masks).amax() <= 0.7
    assert ((darkest * masks).flatten(2).amax(2) > 0.9).all()


def test_directions_are_even_and_no_frame_tells_them(clip, clips):
    assert clips["label"].bincount().tolist() == [100] * 4
    middle = clips["digit"][:, clip.FRAMES // 2]
    found = torch.stack([middle[clips["label"] == label].mean(0) for label in range(4)])
    centres = [(found.sum(axis) * torch.arange(clip.SIDE)).sum(1) / found.sum((1, 2)) for axis in (1, 2)]
    assert all((centre - clip.SIDE / 2).abs().max() < 2 for centre in centres)


@pytest.fixture(scope="module")
def runs(volume, clip, tmp_path_factory):
    """The runs of both examples: the folder, and what each example measures at the end."""
    folder = tmp_path_factory.mktemp("axes")
    measured = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for run in volume.MARKED:
            volume.seed_everything(0)
            model = volume.VolumeClassifier()
            volume.fit(model, run, volume.make_logger("tensorboard", run), epochs=10)
            measured[run] = volume.measure(model)
        clip.seed_everything(0)
        model = clip.ClipClassifier()
        clip.fit(model, clip.make_logger("tensorboard", "clip"), epochs=4)
        measured["clip"] = clip.measure(model)
    torch.set_num_threads(1)
    return folder / "runs", measured


@pytest.mark.slow
def test_the_maps_of_volumes_tell_weak_from_strong(runs):
    folder, measured = runs
    weak, strong = measured["volume_weak"], measured["volume_strong"]
    assert weak["marker"] > 0.95
    assert strong["no marker"] > 0.9
    assert weak["map on marker"] > 2 * strong["map on marker"]
    assert strong["map on digit"] > 1.5 * weak["map on digit"]
    logged = {
        (run, region): events(folder / run).Scalars(f"gradcam/mass_{region}")[-1].value
        for run in ("volume_weak", "volume_strong")
        for region in ("marker", "digit")
    }
    assert logged["volume_weak", "marker"] > 2 * logged["volume_strong", "marker"]
    assert logged["volume_strong", "digit"] > 1.5 * logged["volume_weak", "digit"]


@pytest.mark.slow
def test_the_maps_of_clips_lie_on_the_digit(clip, runs):
    folder, measured = runs
    assert measured["clip"]["accuracy"] > 0.95
    assert measured["clip"]["map on digit"] > 1.4 * clip.UNIFORM
    assert "gradcam/clip" in events(folder / "clip").Tags()["images"]


@pytest.mark.slow
@pytest.mark.parametrize(("run", "grid"), [("volume_weak", (6, 6, 6)), ("clip", (8, 10, 10))])
def test_the_record_holds_maps_of_all_axes(runs, run, grid):
    record = Record.open(runs[0] / run)
    assert [maps.shape[2:] for maps in record.maps.values()] == [grid]
