"""The scenes that the examples with language are trained on: what is said of them is true of the pixels."""

import pytest
import torch


@pytest.fixture(scope="module")
def examples(imported):
    return {name: imported(name) for name in ("scenes", "captioning", "vqa")}


@pytest.fixture(scope="module")
def batch(examples):
    return examples["scenes"].held_out()


def test_a_held_out_scene_is_always_the_same_and_a_training_scene_is_not(examples):
    scenes, again = examples["scenes"].Scenes(), examples["scenes"].Scenes()
    for index in (0, 7, 399):
        for key, value in scenes[index].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(again[index][key]))
    training = examples["scenes"].Scenes(train=True)
    assert not torch.equal(training[0]["image"], training[0]["image"])


def test_a_scene_holds_two_digits_that_differ(batch):
    assert len(batch["image"]) == 400
    assert (batch["digits"][:, 0] != batch["digits"][:, 1]).all()


def test_the_boxes_do_not_touch_and_lie_as_is_said(examples, batch):
    side, digit = examples["scenes"].SIDE, examples["scenes"].DIGIT
    first, second = batch["boxes"].unbind(1)
    assert (batch["boxes"] >= 0).all()
    assert (batch["boxes"] <= side).all()
    assert (batch["boxes"][..., 2:] - batch["boxes"][..., :2] == digit).all()
    axis = batch["stacked"]
    end, start = first.gather(1, axis[:, None] + 2)[:, 0], second.gather(1, axis[:, None])[:, 0]
    assert (end < start).all()
    assert 0.3 < axis.float().mean() < 0.7


def test_the_boxes_hold_the_ink_and_nothing_else_is_as_bright(examples, batch):
    masks = examples["scenes"].box_masks(batch["boxes"].flatten(0, 1), batch["image"].shape[2:])
    inside = masks.unflatten(0, (-1, 2)).sum(1) > 0
    darkest = batch["image"].amin(1)  # ink is white, the photo at most 0.7
    assert (darkest * ~inside).amax() <= 0.7
    per_digit = (darkest[:, None] * masks.unflatten(0, (-1, 2))).amax((2, 3))
    assert (per_digit > 0.9).all()


def test_a_caption_names_the_digits_in_their_order(examples, batch):
    module = examples["captioning"]
    words = [module.text(caption) for caption in module.captions(batch)]
    names = module.Scenes.classes
    for said, digits, stacked in zip(words, batch["digits"].tolist(), batch["stacked"].tolist(), strict=True):
        first, second = (("an " if digit == 8 else "a ") + names[digit] for digit in digits)
        assert said == f"{first} {'above' if stacked else 'left of'} {second}"


def test_the_row_of_a_word_has_the_box_of_its_digit(examples, batch):
    module = examples["captioning"]
    rows = module.read_words(batch)
    assert len(rows.images) == 800
    for i in range(0, 800, 37):
        scene, digit = divmod(i, 2)
        assert torch.equal(rows.images[i], batch["image"][scene])
        assert rows.labels[i] == batch["digits"][scene, digit]
        assert rows.groups[i] == module.WORDS[rows.labels[i]]
        assert rows.inputs["caption"][i, rows.inputs["place"][i]] == rows.labels[i]
        assert torch.equal(rows.regions["digit"][i], batch["boxes"][scene, digit])
        assert torch.equal(rows.regions["other"][i], batch["boxes"][scene, 1 - digit])


def test_the_answer_to_a_question_is_the_digit_in_its_box(examples, batch):
    module = examples["vqa"]
    rows = module.read_batch(batch)
    assert len(rows.images) == 1200
    centre = (batch["boxes"][..., :2] + batch["boxes"][..., 2:]) / 2
    right_digit = {
        "left": centre[..., 0].argmin(1),
        "right": centre[..., 0].argmax(1),
        "above": centre[..., 1].argmin(1),
        "below": centre[..., 1].argmax(1),
        "larger": batch["digits"].argmax(1),
    }
    for i, kind in enumerate(rows.groups):
        scene = i // 3
        digit = right_digit[kind][scene]
        assert rows.ids[i] == f"{kind}: which digit is {kind}?"
        assert [module.WORDS[word] for word in rows.inputs[i]] == ["which", "digit", "is", kind]
        assert rows.labels[i] == batch["digits"][scene, digit]
        assert torch.equal(rows.regions["digit"][i], batch["boxes"][scene, digit])
        assert torch.equal(rows.regions["other"][i], batch["boxes"][scene, 1 - digit])


@pytest.mark.parametrize("place", [0, 1])
def test_a_word_is_judged_by_the_words_before_it_alone(examples, batch, place):
    module = examples["captioning"]
    torch.manual_seed(0)
    model = module.Captioner(examples["scenes"].Classifier().features).eval()
    caption = module.captions(batch)[:4]
    changed = caption.clone()
    changed[:, module.NAMES[place]] = (caption[:, module.NAMES[place]] + 1) % 10
    one, two = (model(batch["image"][:4], words) for words in (caption, changed))
    assert torch.equal(one[:, : module.NAMES[place] + 1], two[:, : module.NAMES[place] + 1])
    torch.testing.assert_close(one.exp().sum(2), torch.ones(4, module.LENGTH))
