"""The loop that trains: when it ends, what it leaves, and how it goes on after it was killed."""

import itertools
import math
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.errors import UsageError
from tests.learned.plans import lessons

torch = pytest.importorskip("torch")
from onnxq.learned.training import (  # noqa: E402
    JUDGEMENTS,
    PATIENCE,
    SURE,
    Group,
    optimise,
    surely_less,
)

STEPS = 2 * JUDGEMENTS
MEMORY = 0.15
FEEDS = {"x": np.zeros((20, 1), np.float32)}


def distance(values):
    return float(sum(((x - 1.0) ** 2).sum() for x in values))


class Task:
    """Two groups of parameters drawn to a goal, with noise that a step's number decides.

    ``said`` are the figures of the judge, the start's first; by default it says the distance.
    """

    def __init__(self, said=None, stops=()):
        self.parameters = [torch.nn.Parameter(torch.tensor([3.0, -2.0])) for _ in range(2)]
        self.groups = [Group(self.parameters[:1], 0.3), Group(self.parameters[1:], 0.1)]
        self.said = None if said is None else iter(said)
        self.stops = stops
        self.judged, self.asked, self.steps, self.notes = [], 0, 0, []

    def values(self):
        return [p.detach().clone() for p in self.parameters]

    def loss(self, step):
        noise = torch.from_numpy(np.random.default_rng(step).standard_normal(2)).float()
        for i, parameter in enumerate(self.parameters):
            if ("loss", step, i) in self.stops:
                raise KeyboardInterrupt
            yield ((parameter - 1.0 - noise) ** 2).sum()

    def judge(self):
        if ("judge", self.asked) in self.stops:
            raise KeyboardInterrupt
        self.asked += 1
        self.judged.append(self.values())
        said = distance(self.values()) if self.said is None else next(self.said)
        return np.atleast_1d(np.array(said, np.float64))

    def progress(self, stage, advance, total, note=""):
        self.steps += advance
        self.notes.append(note)
        if ("progress", self.steps) in self.stops:
            raise KeyboardInterrupt

    def run(self, steps=STEPS, name="task", **more):
        given = lessons(FEEDS, progress=self.progress, **more)
        return optimise(name, self.groups, self.loss, self.judge, steps, given, MEMORY)


def same(found, wanted):
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_training_leaves_what_the_judge_found_best():
    task = Task()
    done = task.run()
    assert done.best < done.before
    assert done.step == task.steps == STEPS
    assert not done.interrupted
    distances = list(map(distance, task.judged))
    assert done.best == min(distances[1:])
    assert done.before == distances[0]
    same(task.values(), task.judged[int(np.argmin(distances))])
    assert str(done) == f"loss on held-out samples {done.before:.4g} -> {done.best:.4g}, 24 steps"
    assert task.notes[-1] == f"held-out loss {done.best:.4g}, was {done.before:.4g}"


def test_what_is_judged_is_a_moving_average_over_the_steps():
    task = Task()
    states, loss = [], task.loss

    def watched(step):
        states.append(task.values())
        return loss(step)

    task.loss = watched
    task.run()
    average, share = states[0], 1 / (1 + MEMORY * STEPS)
    for step, state in enumerate(states[1:], start=1):
        average = [a + share * (x - a) for a, x in zip(average, state, strict=True)]
        if step % 2 == 0:
            for found, wanted in zip(task.judged[step // 2], average, strict=True):
                assert found.numpy() == pytest.approx(wanted.numpy(), rel=1e-5)
    assert len(states) == STEPS


# What the judge says of the start and then, and at which of its later figures a training ends.
JUDGED = {
    "better and better": ([1.3, 1.2, 1.1, 1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1], 12),
    "worse in the first half": ([1, 2, 3, 4, 5, 6, 7, 6, 5, 4, 3, 2, 0.9], 12),
    "worse in the second half": ([1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.5, 0.6, 0.7, 0.1], 9),
    "worse and worse": ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0.1], 9),
    "up and down": ([1, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 1, 1.1, 0.8, 0.9, 1, 0.7], 12),
    "worse late": ([1, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.8, 0.7, 0.8, 0.9, 1, 0.1], 11),
    "an equal figure is no worse": ([1] * 13, 12),
    "never better than the start": ([1, 9, 8, 7, 6, 5, 4, 3, 2, 1.9, 1.8, 1.7, 1.6], 12),
    "no number": ([1, *[math.nan] * 12], 9),
    "no number at first": ([math.nan, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2], 12),
    "infinite at first": ([math.inf, 3, 2, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3], 12),
}  # fmt: skip


@pytest.mark.parametrize(("said", "end"), JUDGED.values(), ids=JUDGED)
def test_a_training_ends_when_it_gets_worse_and_worse_late(said, end):
    task = Task(said)
    done = task.run()
    assert done.step == end * STEPS // JUDGEMENTS
    assert task.steps == STEPS  # the bar is full all the same
    assert task.asked == end + 1
    best = min((x for x in said[1 : end + 1] if not math.isnan(x)), default=math.inf)
    assert done.best == best
    undone = not best < said[0]
    same(task.values(), task.judged[0 if undone else said.index(best)])
    assert str(done).endswith("no better, left as it was") == undone


def test_what_may_be_better_by_chance_is_undone():
    start = np.arange(1.0, 13.0)
    for change, kept in (([0.1, 0.2] * 6, True), ([1.0, -0.8] * 6, False)):
        task = Task([start] * 12 + [start - np.array(change)])
        done = task.run()
        assert done.best < done.before
        same(task.values(), task.judged[12 if kept else 0])
        assert str(done).endswith("may be chance, left as it was") != kept


@given(st.integers(0, 2**16), st.integers(10, 200), st.floats(-0.5, 0.5))
def test_chance_is_two_standard_errors_of_the_differences(seed, count, shift):
    noise = np.random.default_rng(seed).standard_normal((2, count))
    start, losses = 5 + noise[0], 5 + noise[0] + 0.3 * noise[1] - shift
    gain = start - losses
    error = np.sqrt(np.sum((gain - gain.mean()) ** 2) / (count - 1) / count)
    assert surely_less(losses, start) == (np.mean(gain) > SURE * error)
    order = np.random.default_rng(seed).permutation(count)
    assert surely_less(losses[order], start[order]) == surely_less(losses, start)


def test_figures_that_are_no_numbers_or_few_are_compared_by_their_means():
    one, infinite = np.ones(30), np.append(np.ones(29), np.inf)
    assert surely_less(one, infinite)
    assert not surely_less(infinite, one)
    assert not surely_less(np.append(np.zeros(29), np.nan), one)
    assert not surely_less(one, one)
    assert surely_less(np.array([2.9, 0.0, 0.0]), np.ones(3))


@pytest.mark.parametrize(("steps", "every"), [(1, 1), (5, 1), (12, 1), (30, 2), (43, 3)])
def test_the_judge_is_asked_a_dozen_times_and_in_the_end(steps, every):
    task = Task(said=[1.0, *np.linspace(0.9, 0.1, 40)])
    done = task.run(steps=steps)
    assert (done.step, task.steps) == (steps, steps)
    assert task.asked == 1 + -(-steps // every)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_each_of_few_steps_goes_somewhere(steps):
    task = Task(said=[1.0, 0.9, 0.8, 0.7])
    optimise("task", task.groups, task.loss, task.judge, steps, lessons(FEEDS))
    for before, after in itertools.pairwise(task.judged):
        assert not any(map(torch.equal, before, after))
    assert len(task.judged) == 1 + steps


STOPS = {
    "before the first step": [("progress", 0)],
    "in the first step": [("loss", 0, 0)],
    "in the middle of a step": [("loss", 7, 1)],
    "behind a step": [("progress", 9)],
    "behind a judgement": [("progress", 10)],
    "in a judgement": [("judge", 5)],
    "behind the last step": [("progress", STEPS)],
    "in the first judgement": [("judge", 0)],
}


@pytest.mark.parametrize("stops", STOPS.values(), ids=STOPS)
def test_an_interrupted_training_keeps_the_best_so_far(stops):
    task = Task(stops=stops)
    start = task.values()
    done = task.run()
    assert done.interrupted
    figures = list(map(distance, task.judged))
    wanted = task.judged[int(np.argmin(figures))] if len(figures) > 1 else start
    same(task.values(), wanted)
    assert done.best == min(figures[1:], default=math.inf)


def test_an_interrupted_training_that_was_worse_so_far_is_undone():
    early = Task(said=[1], stops=[("progress", 1)])
    assert str(early.run()) == "1 steps, none of them judged: left as it was"
    task = Task(said=[1, 2, 3, 3], stops=[("progress", 6)])
    start = task.values()
    assert task.run().interrupted
    same(task.values(), start)


# -- checkpoints -------------------------------------------------------------------------------


class Killed(Exception):  # noqa: N818  (nothing is wrong)
    pass


class Dying(Task):
    """Is killed when so many steps are done."""

    def __init__(self, last, said=None):
        super().__init__(said)
        self.last = last

    def progress(self, stage, advance, total, note=""):
        super().progress(stage, advance, total, note)
        if self.steps == self.last:
            raise Killed


def equal_states(found, wanted):
    ours, theirs = asdict(found), asdict(wanted)
    same(ours.pop("kept"), theirs.pop("kept"))
    assert ours == theirs


@given(kills=st.lists(st.integers(0, STEPS), min_size=1, max_size=3))
@settings(derandomize=True, database=None, max_examples=15)
def test_a_training_that_was_killed_goes_on_to_the_same_result(tmp_path_factory, kills):
    path = tmp_path_factory.mktemp("state") / "state.pt"
    whole = Task()
    wanted = whole.run()
    for last in kills:
        task = Dying(last)
        try:
            task.run(checkpoint=path)
        except Killed:
            continue
    again = Task()
    found = again.run(checkpoint=path)
    same(again.values(), whole.values())
    equal_states(found, wanted)
    assert again.steps == STEPS
    assert [file.name for file in path.parent.iterdir()] == ["state.pt"]


def test_a_killed_training_takes_none_of_the_steps_again_that_were_judged(tmp_path):
    with pytest.raises(Killed):
        Dying(15).run(checkpoint=tmp_path / "state.pt")
    again = Task()
    again.run(checkpoint=tmp_path / "state.pt")
    assert again.asked == JUDGEMENTS - 7  # those behind step 14, and none of the start


def test_patience_is_counted_across_a_kill(tmp_path):
    said = [1, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 1, 2, 3, 0.1]
    with pytest.raises(Killed):
        Dying(17, said).run(checkpoint=tmp_path / "state.pt")  # eight judgements, two were worse
    task = Task(said[9:])
    done = task.run(checkpoint=tmp_path / "state.pt")
    assert (done.best, done.rises, done.step) == (0.9, PATIENCE, 18)


def test_a_training_that_is_done_is_not_done_again(tmp_path):
    first, again = Task(), Task()
    wanted = first.run(checkpoint=tmp_path / "state.pt")
    found = again.run(checkpoint=tmp_path / "state.pt")
    assert (again.asked, again.steps) == (0, STEPS)
    same(again.values(), first.values())
    equal_states(found, wanted)


def test_an_interrupted_training_goes_on_where_it_was_judged_last(tmp_path):
    whole = Task()
    wanted = whole.run()
    assert Task(stops=[("progress", 11)]).run(checkpoint=tmp_path / "state.pt").interrupted
    again = Task()
    equal_states(again.run(checkpoint=tmp_path / "state.pt"), wanted)
    same(again.values(), whole.values())


OTHERS = {
    "name": {"name": "another"},
    "steps": {"steps": STEPS + 12},
    "samples": {"seed": 1},
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_the_state_of_another_training_is_kept_beside_and_not_used(tmp_path, other):
    path = tmp_path / "state.pt"
    with pytest.raises(Killed):
        Dying(10).run(checkpoint=path, **other)
    task, alone = Task(), Task()
    equal_states(task.run(checkpoint=path), alone.run())
    assert task.asked == 1 + JUDGEMENTS
    again, whole = Task(), Task()
    equal_states(again.run(checkpoint=path, **other), whole.run(**other))
    assert 0 < again.asked < whole.asked


def other_archive(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("state/data.pkl", b"nothing")


def arrays(path):
    with path.open("wb") as file:
        np.savez(file, image=np.ones(3))


def truncated(path):
    Task().run(checkpoint=path)
    path.write_bytes(path.read_bytes()[:-200])


STRANGE = {
    "text": lambda path: path.write_text("hello", encoding="utf-8"),
    "empty": lambda path: path.write_bytes(b""),
    "weights": lambda path: torch.save({"weight": torch.ones(3)}, path),
    "a list": lambda path: torch.save([1, 2], path),
    "arrays": arrays,
    "another archive": other_archive,
    "torn": truncated,
    "a folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("write", STRANGE.values(), ids=STRANGE)
def test_a_checkpoint_that_is_something_else_is_left_alone(tmp_path, write):
    path = tmp_path / "state.pt"
    write(path)
    before = None if path.is_dir() else path.read_bytes()
    task = Task()
    with pytest.raises(UsageError, match=r"state\.pt: is no checkpoint") as found:
        task.run(checkpoint=path)
    assert "\n" not in str(found.value)
    assert (task.asked, task.steps) == (0, 0)
    assert path.is_dir() or path.read_bytes() == before


def test_a_checkpoint_that_the_disk_refuses_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    opened, path = Path.open, tmp_path / "state.pt"
    monkeypatch.setattr(Path, "open", lambda _, mode: opened(Path("/dev/full"), mode))
    with pytest.raises(OSError, match="No space left") as found:
        Task().run(checkpoint=path)
    assert found.value.filename == str(path)
    assert list(tmp_path.iterdir()) == []
