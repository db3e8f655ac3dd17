"""Pictures by their pixels."""

from io import BytesIO

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from lightning_gradcam import Batch, Display
from lightning_gradcam.attribution.question import predict
from lightning_gradcam.picture.display import photos
from lightning_gradcam.picture.encode import jpeg
from lightning_gradcam.picture.grid import Caption, captions, grid
from lightning_gradcam.picture.overlay import AGAINST, COLORMAPS, colors, gradient_pictures, overlay
from lightning_gradcam.picture.text import fit, load_font, missing_letters

CAPTION = Caption(("#1 cat", "0.90"), ("pred cat", "0.90"), True, "")

# Colours and overlay


@pytest.mark.parametrize("name", COLORMAPS)
def test_colormaps_are_those_of_matplotlib(name):
    values = torch.linspace(0, 1, 256)
    expected = matplotlib.colormaps[name](values.numpy())[:, :3]
    assert np.abs(colors(values, name).numpy() - expected).max() < 2.5 / 255


def test_no_evidence_leaves_the_photo_as_it_is():
    grey = torch.rand(3, 8, 8)
    maps = torch.tensor([-1.0, 0.0, torch.nan]).reshape(3, 1, 1).expand(3, 2, 2)
    picture = overlay(grey, maps, (8, 8), "turbo")
    expected = (grey * 255).round().to(torch.uint8)
    assert torch.equal(picture, expected[..., None].expand(3, 8, 8, 3))


def test_full_evidence_is_three_quarters_colour():
    picture = overlay(torch.full((1, 4, 4), 0.2), torch.ones(1, 2, 2), (4, 4), "turbo")
    expected = 0.25 * 0.2 + 0.75 * colors(torch.tensor(1.0), "turbo")
    assert picture[0, 0, 0].tolist() == (expected * 255).round().to(torch.uint8).tolist()


def test_each_map_by_its_own_maximum():
    maps = torch.rand(1, 3, 3)
    pictures = overlay(torch.rand(1, 9, 9).expand(2, 9, 9), torch.cat([maps, 1000 * maps]), (9, 9), "turbo")
    assert (pictures[0].int() - pictures[1].int()).abs().max() <= 1


def test_counterfactual_evidence_has_a_colour_of_its_own_on_the_same_scale():
    maps = torch.tensor([[[4.0, -2.0]], [[1.0, -2.0]]]).repeat_interleave(2, 1)
    photos = torch.full((2, 4, 8), 0.4)
    pictures = overlay(photos, maps, (4, 8), "turbo", None, counterfactual=True)
    full = (255 * (0.25 * 0.4 + 0.75 * colors(torch.tensor(1.0), "turbo"))).round()
    assert pictures[0, 0, 0].tolist() == pytest.approx(full.tolist(), abs=1)  # 4 of 4
    against = torch.tensor(AGAINST["turbo"])
    for picture, share in zip(pictures, (0.5, 1), strict=True):  # 2 of 4, and 2 of 2
        opacity = 0.75 * share
        expected = ((1 - opacity) * 255 * 0.4 + opacity * against).round()
        assert picture[0, -1].tolist() == pytest.approx(expected.tolist(), abs=1)
    plain = overlay(photos, maps, (4, 8), "turbo")
    assert plain[0, 0, -1].tolist() == [102, 102, 102]  # what is against is not drawn
    assert pictures[1, 0, 0].tolist() != plain[1, 0, 0].tolist()  # half of the common scale, not its own maximum


@pytest.mark.parametrize("name", COLORMAPS)
def test_a_map_without_a_positive_cell_in_the_run_is_drawn_by_its_own_maximum(name):
    maps = torch.tensor([[[-1.0, -4.0]], [[-1.0, 3.0]]])
    photos = torch.full((2, 4, 8), 0.4)
    pictures = overlay(photos, maps, (4, 8), name, torch.tensor([0.0, 1.0]), counterfactual=True)
    against = torch.tensor(AGAINST[name])
    for picture, share in ((pictures[0, 0, -1], 1), (pictures[0, 0, 0], 0.25), (pictures[1, 0, 0], 1)):
        expected = ((1 - 0.75 * share) * 255 * 0.4 + 0.75 * share * against).round()
        if picture.tolist() != [255, 255, 255]:  # a contour
            assert picture.tolist() == pytest.approx(expected.tolist(), abs=1)


@pytest.mark.parametrize("name", COLORMAPS)
def test_the_colour_of_evidence_against_is_not_in_the_map(name):
    table = 255 * colors(torch.linspace(0, 1, 256), name)
    assert (table - torch.tensor(AGAINST[name])).norm(dim=1).min() > 80


def test_relief_by_hand():
    gradients = torch.zeros(3, 3, 2, 2)
    gradients[0, 0, 0, 0], gradients[0, 2, 1, 1] = 2, -1
    gradients[1] = torch.nan
    pictures = gradient_pictures(gradients, (2, 2))
    assert pictures[0, 0, 0].tolist() == [255, 128, 128]  # 127.5 rounds to even
    assert pictures[0, 1, 1].tolist() == [128, 128, 64]
    assert (pictures[1:] == 128).all()
    two = torch.tensor([[[[3.0]], [[-1.0]]]])  # other numbers of channels: their mean, in grey
    assert gradient_pictures(two, (1, 1)).tolist() == [[[[255, 255, 255]]]]


def test_one_outlier_does_not_darken_a_relief():
    gradients = torch.ones(1, 1, 20, 20)
    gradients[0, 0, 0, 0] = 1000
    assert gradient_pictures(gradients, (20, 20))[0, 5, 5].tolist() == [255] * 3


def test_evidence_lies_where_the_map_has_it():
    maps = torch.zeros(1, 2, 4)
    maps[0, 1, 3] = 1
    picture = overlay(torch.zeros(1, 20, 40), maps, (20, 40), "turbo")
    bright = picture.sum(-1)[0] > 60
    rows, columns = bright.nonzero().unbind(1)
    assert rows.min() >= 5
    assert columns.min() >= 25
    assert bright[15:, 35:].all()


def test_contour_at_half_of_the_maximum():
    maps = torch.zeros(1, 1, 4)
    maps[0, 0, 0] = 1
    picture = overlay(torch.zeros(1, 8, 32), maps, (8, 32), "inferno")
    white = (picture[0] == 255).all(-1)
    assert white[4].nonzero().tolist() == [[7]]  # halfway between the cells' centres at 3.5 and 11.5


# Photos


def test_undoes_a_normalization():
    images = torch.rand(2, 3, 4, 4)
    mean, std = [0.4, 0.5, 0.6], [0.1, 0.2, 0.3]
    normalized = transforms.Normalize(mean, std)(images)
    shown, note = photos(normalized, mean, std)
    torch.testing.assert_close(shown, photos(images, None, None)[0])
    assert note is None


def test_unknown_normalization_takes_one_scale_for_the_batch_and_says_so():
    images = torch.tensor([[-2.0, 0.0], [0.0, 2.0]]).reshape(2, 1, 1, 2)
    shown, note = photos(images, None, None)
    assert shown.reshape(-1).tolist() == [0, 0.5, 0.5, 1]
    assert note
    assert "one scale from -2 (black) to 2 (white); give `Display(mean=..., std=...)`" in note


def test_values_from_0_to_1_and_bytes_are_shown_as_they_are():
    images = torch.tensor([0.25, 0.5]).reshape(1, 1, 1, 2)
    assert photos(images, None, None) == (pytest.approx(images[:, 0]), None)
    shown, note = photos(torch.tensor([51, 255], dtype=torch.uint8).reshape(1, 1, 1, 2), None, None)
    torch.testing.assert_close(shown.reshape(-1), torch.tensor([0.2, 1.0]))
    assert note is None


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_any_number_of_channels(channels):
    shown, _ = photos(torch.full((1, channels, 2, 2), 0.5), None, None)
    torch.testing.assert_close(shown, torch.full((1, 2, 2), 0.5))


def test_a_scale_that_does_not_fit_is_told_with_the_values_that_come_of_it():
    images = torch.tensor([-2.0, 0.5, 1.0, 2.0]).reshape(1, 1, 2, 2)
    _, note = photos(images, [100.0], [50.0])
    assert note
    assert "`mean` [100.0] and `std` [50.0] bring the images to values from 0 to 200, most of them outside 0" in note
    shown, note = photos(images, [0.4], [0.25])  # from -0.1 to 0.9: one of four lies outside
    assert note is None
    torch.testing.assert_close(shown.reshape(-1), torch.tensor([0, 0.525, 0.65, 0.9]))


def test_a_black_background_is_not_outside_by_what_rounding_leaves():
    images = (torch.zeros(1, 1, 4, 4) - 0.1307) / 0.3081
    assert photos(images, 0.1307 - 1e-4, 0.3081)[1] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mean": 0.5}, "`Display` needs `mean` and `std` together, got one of them"),
        ({"mean": 0.5, "std": [0.5, 0]}, "`std` must be above 0 in every channel, got"),
        ({"colormap": "jet"}, r"`colormap` must be one of \['inferno', 'turbo'\], got 'jet'"),
        ({"tile": 8}, "`tile` must be at least 32 pixels, got 8"),
        ({"class_names": "abc"}, "`class_names` must be a sequence of names, got 'abc'"),
        ({"class_names": [0, 1]}, r"`class_names` must be a sequence of names, got \[0, 1\]"),
        ({"tile": "64"}, "`tile` must be at least 32 pixels, got '64'"),
        ({"font": "none.ttf"}, "`font` must be a TrueType file, there is none at 'none.ttf'"),
    ],
)
def test_display_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        Display(**arguments)


# Captions and text


def test_captions():
    logits = torch.tensor([[1.0, 1.0], [3.0, 1.0], [0.0, 9.0]]).log()
    batch = Batch(torch.zeros(3, 3, 4, 4), torch.tensor([0, 0, 0]), ids=[4, 8, "x"])
    maps = torch.tensor([[[1.0, 0.0]], [[-1.0, -1.0]], [[torch.inf, 0.0]]])
    one, two, three = captions(batch, maps, predict(logits, batch), ["cat"])
    assert one == Caption(("#4 cat", "0.50"), ("pred cat", "0.50"), True, "")
    assert two == Caption(("#8 cat", "0.75"), ("pred cat", "0.75"), True, "map empty")
    assert three == Caption(("x cat", "0.00"), ("x pred 1", "1.00"), False, "not finite")


def test_captions_of_multi_hot_labels_and_of_models_that_are_no_classifiers():
    batch = Batch(torch.zeros(1, 3, 4, 4), torch.tensor([[1, 0, 1]]))
    (caption,) = captions(batch, torch.ones(1, 1, 1), None, ["a", "b", "c"])
    assert caption == Caption(("#0 a+c", ""), ("", ""), None, "")
    (caption,) = captions(Batch(batch.images), torch.ones(1, 1, 1), None, None)
    assert caption.sample == ("#0", "")


def test_labels_that_name_no_class_are_shown_as_they_are():
    batch = Batch(torch.zeros(2, 3, 4, 4), torch.tensor([-1.0, 0.7]))
    titles = [caption.sample for caption in captions(batch, torch.ones(2, 1, 2), None, ["cat", "dog"])]
    assert titles == [("#0 -1", ""), ("#1 0.7", "")]


def test_more_samples_than_a_jpeg_holds():
    with pytest.raises(ValueError, match=r"2400 maps make a picture of 79\d\d\d pixels in height.*fewer `pictures`"):
        grid(torch.zeros(2400, 4, 4), torch.zeros(2400, 1, 2), [CAPTION] * 2400, {}, "")


def test_the_font_covers_what_users_write():
    font = load_font(None, 13)
    assert missing_letters(["é ß → ≥ – ž ł ğ α Ω ж я", "عربي"], font) == ""
    assert missing_letters(["猫 and 犬"], font) == "犬猫"


def test_text_fits():
    font = load_font(None, 13)
    assert fit("cat", font, 100) == "cat"
    short = fit("a very long class name", font, 60)
    assert short.endswith("…")
    assert font.getlength(short) <= 60
    assert fit("two\nlines\x00", font, 100) == "two lines "


# The grid


@pytest.mark.parametrize(("n", "columns", "rows"), [(1, 1, 1), (6, 6, 1), (7, 4, 2), (13, 5, 3), (16, 6, 3)])
def test_size_of_the_grid(n, columns, rows):
    picture = grid(torch.rand(n, 8, 8), torch.rand(n, 2, 2), [CAPTION] * n, {}, "key", tile=64)
    assert picture.size == (columns * 68 + 4, rows * (64 + 34 + 4) + 4 + 17)


def test_tiles_keep_the_aspect_of_the_images():
    wide = grid(torch.rand(1, 8, 16), torch.rand(1, 2, 4), [CAPTION], {}, "", tile=64)
    assert wide.size == (72, 32 + 34 + 8 + 17)
    tall = grid(torch.rand(1, 64, 4), torch.rand(1, 4, 1), [CAPTION], {}, "", tile=64)
    assert tall.size == (32 + 8, 64 + 34 + 8 + 17)


@pytest.mark.parametrize(("right", "color"), [(True, (27, 94, 155)), (False, (179, 38, 30)), (None, (74, 74, 74))])
def test_strip_tells_right_from_wrong(right, color):
    caption = Caption(("#1", ""), ("", ""), right, "")
    picture = grid(torch.zeros(1, 8, 8), torch.ones(1, 2, 2), [caption], {}, "", tile=64)
    assert picture.getpixel((5, 4 + 64 + 30)) == color


def test_boxes_are_white_within_black():
    box = {"a": torch.tensor([[4, 4, 12, 12]])}
    picture = grid(torch.full((1, 16, 16), 0.5), -torch.ones(1, 2, 2), [CAPTION], box, "", tile=64)
    row = [picture.getpixel((x, 4 + 32)) for x in range(4 + 14, 4 + 20)]
    grey, black, white = (128,) * 3, (0,) * 3, (255,) * 3
    assert row == [grey, grey, black, white, white, grey]


def test_empty_maps_are_marked():
    plain = grid(torch.zeros(1, 8, 8), -torch.ones(1, 2, 2), [CAPTION], {}, "")
    marked = grid(torch.zeros(1, 8, 8), -torch.ones(1, 2, 2), [Caption(*[("", "")] * 2, True, "map empty")], {}, "")
    tile = (4, 4, 164, 164)
    assert not np.asarray(plain.crop(tile)).any()
    assert (np.asarray(marked.crop(tile)) == 255).any()


def test_jpeg():
    picture = grid(torch.rand(4, 32, 32), torch.rand(4, 2, 2), [CAPTION] * 4, {}, "key")
    again = Image.open(BytesIO(jpeg(picture)))
    assert (again.format, again.size) == ("JPEG", picture.size)
    assert np.abs(np.asarray(again).astype(int) - np.asarray(picture)).mean() < 8


def test_captions_of_several_maps_a_sample():
    batch = Batch(torch.zeros(2, 3, 4, 4), torch.tensor([0, 1]), ids=[7, "x"]).repeated(2)
    assert batch.ids == ["#7/1", "#7/2", "x/1", "x/2"]
    said = predict(torch.tensor([[3.0, 1.0], [3.0, 1.0]]).log(), Batch(torch.zeros(2, 3, 4, 4), torch.tensor([0, 1])))
    maps, asked = torch.ones(4, 1, 1), torch.tensor([0, 1, 0, 1])
    found = captions(batch, maps, said.repeated(2), ["cat", "dog"], None, asked, 2)
    assert [caption.sample for caption in found] == [
        ("#7/1 cat", "0.75"), ("#7/2 cat", "0.75"), ("x/1 dog", "0.25"), ("x/2 dog", "0.25")
    ]  # fmt: skip
    assert [caption.prediction for caption in found] == [
        ("for cat", "0.75"), ("for dog", "0.25"), ("x for cat", "0.75"), ("for dog", "0.25")
    ]  # fmt: skip
    # Right: what is there; wrong: what is predicted and not there; neither: what is neither.
    assert [caption.right for caption in found] == [True, None, False, True]
    found = captions(batch, maps, said.repeated(2), None, None, torch.tensor([0, 7, 0, 1]), 2)
    assert found[1].prediction == ("for 7", "")  # a class of the target's own, which the model has no probability of
    found = captions(batch, maps, None, None, torch.tensor([0.5] * 4), None, 2)
    assert [caption.prediction for caption in found] == [("score 1", "Δ0.50"), ("score 2", "Δ0.50")] * 2
