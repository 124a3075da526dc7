import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from onnxq.numerics.relief import cheapest

UNITS = "abcdef"


@st.composite
def problems(draw):
    """Noise of some sources at some outputs, what each needs, prices, and what may be left."""
    n, outputs = draw(st.integers(1, 8)), draw(st.integers(1, 3))
    amounts = st.lists(st.floats(0, 4), min_size=outputs, max_size=outputs)
    noise = np.array(draw(st.lists(amounts, min_size=n, max_size=n)))
    needs = st.frozensets(st.sampled_from(UNITS), min_size=1)
    units = draw(st.lists(needs, min_size=n, max_size=n))
    price = {unit: draw(st.floats(0, 1)) for unit in UNITS}
    most = np.array(draw(st.lists(st.floats(0.1, 8), min_size=outputs, max_size=outputs)))
    return noise, units, price, most


def left(noise, chosen):
    return np.delete(noise, chosen, axis=0).sum(axis=0)


@given(problems())
def test_little_enough_is_left_and_nothing_is_given_up_in_vain(problem):
    noise, _, _, most = problem
    chosen = cheapest(*problem)
    assert (left(noise, chosen) <= most).all()
    for source in chosen:
        assert (left(noise, [i for i in chosen if i != source]) > most).any()


def test_of_two_alike_the_cheaper_goes():
    noise, units = np.array([[1.0], [1.0]]), [frozenset("a"), frozenset("b")]
    assert cheapest(noise, units, {"a": 2.0, "b": 1.0}, np.array([1.0])) == [1]


def test_the_order_that_sets_have_decides_nothing():
    """Of a process to the next it changes, and with it a plain sum in its last bits."""
    noise, units = np.ones((2, 1)), [frozenset({0, 1, 2}), frozenset({3, 4, 5})]
    price = {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.3, 4: 0.2, 5: 0.1}
    assert sum([0.1, 0.2, 0.3]) > sum([0.3, 0.2, 0.1])
    assert cheapest(noise, units, price, np.array([1.0])) == [0]


def test_what_is_paid_for_is_paid_once():
    """Two sources behind one dear unit beat two cheaper ones behind a unit each."""
    noise = np.array([[1.0], [1.0], [1.1], [1.1]])
    units = [frozenset("a"), frozenset("a"), frozenset("b"), frozenset("c")]
    price = {"a": 1.0, "b": 1.2, "c": 1.2}
    assert cheapest(noise, units, price, np.array([2.2])) == [0, 1]


def test_a_unit_that_is_paid_for_beats_a_cheaper_one_for_what_is_left():
    noise = np.array([[1.0], [1.0], [0.6], [0.6]])
    units = [frozenset("a"), frozenset("a"), frozenset("b"), frozenset("c")]
    price = {"a": 1.0, "b": 0.65, "c": 0.65}
    assert cheapest(noise, units, price, np.array([1.7])) == [0, 1]


def test_an_output_that_is_quiet_enough_asks_for_nothing():
    noise = np.array([[5.0, 0.1], [0.1, 5.0]])
    units, price = [frozenset("a"), frozenset("b")], {"a": 9.0, "b": 1.0}
    assert cheapest(noise, units, price, np.array([1.0, 10.0])) == [0]
