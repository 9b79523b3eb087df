from __future__ import annotations

import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stages.accumulation import BLOCK, SCALE_BITS, ExactAccumulator, FloatAccumulator, accumulator_named
from stages.flat import FlatParameters

CPU = torch.device("cpu")
COUNT = 300


def flat(count=COUNT):
    return FlatParameters([nn.ParameterList([nn.Parameter(torch.zeros(count))])], 0, CPU)


def count(parameters, accumulator, gradients):
    for gradient in gradients:
        parameters.gradients[: len(gradient)] = gradient
        accumulator.take()


def summed(*accumulators):
    return torch.from_numpy(sum(accumulator.contribution() for accumulator in accumulators))


def float32(value):
    """Round a number to float32, once."""
    return struct.unpack("f", struct.pack("f", value))[0]


def gradients(seed, number, scale=1e-3):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(COUNT, generator=generator) * scale for _ in range(number)]


@settings(max_examples=40)
@given(seed=st.integers(0, 1000), number=st.integers(1, 8), scale=st.sampled_from([1e-9, 1e-3, 1.0]), data=st.data())
def test_neither_order_nor_place_changes_a_bit(seed, number, scale, data):
    """Microbatches in any order at any of three workers add up to the same float32 gradient."""
    found = gradients(seed, number, scale)
    results = []
    for _ in range(2):
        order = data.draw(st.permutations(found))
        places = data.draw(st.lists(st.integers(0, 2), min_size=number, max_size=number))
        accumulators = []
        for worker in range(3):
            parameters = flat()
            accumulators.append(ExactAccumulator(parameters, 8))
            own = [one for one, place in zip(order, places, strict=True) if place == worker]
            count(parameters, accumulators[-1], own)
            assert parameters.gradients.count_nonzero() == 0
        results.append(accumulators[0].reduced(summed(*accumulators)))
    assert torch.equal(*results)


@pytest.mark.parametrize("make", [FloatAccumulator, lambda parameters: ExactAccumulator(parameters, 8)])
def test_what_another_worker_has_counted_is_added(make):
    """Then it has counted all of it, and the other one's is not changed."""
    one, other = flat(), flat()
    first, second = make(one), make(other)
    count(one, first, gradients(1, 2))
    count(other, second, gradients(2, 3))
    expected = first.reduced(summed(first, second)).clone()
    given = second.contribution()
    first.add(torch.from_numpy(given))
    assert torch.equal(first.alone(), expected)
    assert (second.contribution() == given).all()


def test_the_result_is_the_sum_rounded_once():
    """Each gradient is rounded to 2^-48, their sum to float32: nothing else happens."""
    found = gradients(3, 5, 1e-2)
    parameters = flat()
    accumulator = ExactAccumulator(parameters, 8)
    count(parameters, accumulator, found)
    integers = [sum(round(float(one[index]) * 2**SCALE_BITS) for one in found) for index in range(COUNT)]
    reduced = accumulator.reduced(summed(accumulator))
    assert reduced.dtype == torch.float32
    assert reduced[:COUNT].tolist() == [float32(value / 2**SCALE_BITS) for value in integers]
    assert reduced[COUNT:].count_nonzero() == 0


def test_one_gradient_comes_back_as_it_was():
    """A float32 of at least 2^-24 loses nothing; a smaller one at most half of 2^-48."""
    large = torch.tensor([1.0, -1 / 3, 2.0**-24, -(2.0**-24) * (1 + 2.0**-23), 4000.1])
    small = torch.tensor([1e-8, -1.2345e-10, 2.0**-48, 2.0**-49, 1e-40, -0.0])
    parameters = flat()
    accumulator = ExactAccumulator(parameters, 8)
    count(parameters, accumulator, [torch.cat([large, small])])
    reduced = accumulator.reduced(summed(accumulator))
    assert torch.equal(reduced[:5], large)
    assert (reduced[5:11].double() - small.double()).abs().max() <= 2.0**-49


def test_a_buffer_longer_than_a_block_is_added_whole():
    """Every block, and the short one at the end."""
    parameters = flat(2 * BLOCK + 7)
    accumulator = ExactAccumulator(parameters, 4)
    parameters.gradients[:] = torch.arange(len(parameters.gradients)) * 2.0**-20
    expected = parameters.gradients * 2
    before = parameters.gradients.clone()
    accumulator.take()
    parameters.gradients[:] = before
    accumulator.take()
    assert torch.equal(accumulator.reduced(summed(accumulator)), expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 2.0**12, -(2.0**12), 1e30])
@pytest.mark.parametrize("place", [0, 5, COUNT - 1])
def test_what_does_not_fit_makes_the_whole_result_nan(bad, place):
    """One value of one microbatch at one worker that is not finite or too large: all is NaN, until it is cleared."""
    one, other = flat(), flat()
    first, second = ExactAccumulator(one, 8), ExactAccumulator(other, 8)
    spoiled = gradients(0, 1)[0]
    spoiled[place] = bad
    count(one, first, [*gradients(1, 2), spoiled, *gradients(2, 2)])
    count(other, second, gradients(3, 3))
    assert one.gradients.count_nonzero() == 0
    assert first.reduced(summed(first, second)).isnan().all()
    first.clear()
    assert torch.equal(first.reduced(summed(first, second)), second.reduced(summed(second)))


@pytest.mark.parametrize("num_microbatches", [1, 3, 8, 1000, 8192])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_largest_step_does_not_wrap(num_microbatches, sign):
    """All microbatches just below the bound: the sum is right; at the bound, the first one is refused."""
    bound = 2.0 ** (63 - SCALE_BITS) / num_microbatches
    below = np.float32(bound)
    if below >= bound:
        below = np.nextafter(below, np.float32(0))
    parameters = flat()
    accumulator = ExactAccumulator(parameters, num_microbatches)
    largest = torch.full((COUNT,), sign * float(below))
    count(parameters, accumulator, [largest] * num_microbatches)
    exact = sign * float(below) * num_microbatches
    assert accumulator.reduced(summed(accumulator))[0] == float32(exact)
    at_bound = sign * float(np.nextafter(below, np.float32(np.inf)))
    count(parameters, accumulator, [torch.full((COUNT,), at_bound)])
    assert accumulator.reduced(summed(accumulator)).isnan().all()


def test_many_refusals_do_not_cancel():
    """Whatever is added to one refusal, it stays one: more refusals, from more workers, in every microbatch."""
    parameters = flat()
    accumulator = ExactAccumulator(parameters, 8192)
    count(parameters, accumulator, [torch.full((COUNT,), math.inf), torch.full((COUNT,), -math.inf)] * 4)
    assert accumulator.reduced(summed(accumulator) * 1024).isnan().all()


def test_floats_are_added_where_they_are():
    """`float32` counts nothing of its own: the contribution is a copy of the buffer, the reduced gradient the sums."""
    parameters = flat()
    accumulator = accumulator_named("float32", parameters, 8)
    assert isinstance(accumulator, FloatAccumulator)
    parameters.gradients += 1.0
    accumulator.take()
    parameters.gradients += 1.0
    contribution = accumulator.contribution()
    parameters.gradients += 1.0
    accumulator.clear()
    assert contribution.dtype == np.float32
    assert contribution.tolist() == [2.0] * accumulator.num_values
    sums = torch.ones(accumulator.num_values)
    assert accumulator.reduced(sums) is sums
    assert isinstance(accumulator_named("exact", parameters, 8), ExactAccumulator)
