"""What is global to a process stays as it was."""

import pytest
import torch

from lightning_gradcam.attribution.isolation import random_state


class Generator:
    """A stand-in for a CUDA device's generator: a state that can be exchanged, and a count of what was set."""

    def __init__(self, state):
        self.state, self.was_set = state, 0

    def graphsafe_get_state(self):
        return Generator(self.state)

    def graphsafe_set_state(self, other):
        self.state = other.state

    def clone_state(self):
        return Generator(list(self.state))

    def manual_seed(self, seed):
        self.was_set += 1
        self.state[:] = [seed]

    def draw(self):
        self.state.append("drawn")


@pytest.fixture
def devices(monkeypatch):
    generators = Generator([1]), Generator([2])
    monkeypatch.setattr(torch.cuda, "default_generators", generators)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    return generators


@pytest.mark.parametrize("seed", [None, 7])
def test_cuda_states_are_exchanged_and_never_set(devices, seed):
    """A set state would have cuDNN draw the dropout of recurrent layers anew at the next training step."""
    own = [generator.state for generator in devices]
    within = random_state(seed)
    within.__enter__()
    assert [generator.state for generator in devices] == ([[1], [2]] if seed is None else [[7], [7]])
    for generator in devices:
        generator.draw()
    within.__exit__(None, None, None)
    assert [generator.state for generator in devices] == [[1], [2]]
    assert all(generator.state is state for generator, state in zip(devices, own, strict=True))
    assert not any(generator.was_set for generator in devices)
