"""Looks for replies that a reward pays for although they are bad, as a policy would that wants to cheat.

    report = attack(Attacked(specs=[RewardSpec(path="brevity.py:brevity")]))
    report.exploits         # the smallest reply of each family that scores like a good one

What is bad, an oracle says: a second reward that is right and too dear to train on, or the cases. Without one a reply
is bad because of how it was made: without looking at the task's answer, or against it. It is an exploit only if it
scores like a good reply to several tasks, so that a right reward is accused of nothing.

The search starts from good replies, what is made of them to cheat (`transforms.py`), and pieces without an answer
(`tricks.py`); the best are changed and crossed, and what works is made as small as it can be. Equal seeds give equal
replies.
"""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from rlft.reward import tricks
from rlft.reward.cases import Case, not_asked, uncalled
from rlft.reward.check import MADE_UP, MOST_TASKS
from rlft.reward.exploit_judge import FREE, Judge
from rlft.reward.exploits import Candidate, Exploit, Target, contentless
from rlft.reward.failures import server_said
from rlft.reward.good_replies import Source, good_cases, shown, written
from rlft.reward.probe import MOST_KILLED, GaveUpError, Probe
from rlft.reward.shrinking import fewest_actions, shrunk
from rlft.reward.transcript import Transcript, parted
from rlft.reward.transforms import FILLER
from rlft.reward.tricks import Piece, Recipe
from rlft.types import RewardSpec, Task

ORACLE = "oracle"
"""Name of the reward that says what is good."""
SECONDS = 20.0
_KEPT, _CHILDREN = 12, 24
_PATIENCE = 8
"""Rounds without a better recipe after which it is over."""
_SEARCHING = 0.7
"""Share of the time for finding exploits; the rest is for making them small."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attacked:
    """What is attacked, and how long."""

    specs: Sequence[RewardSpec]
    """None on the learner's base. Without an `oracle` the first shadow reward among them is it."""
    tasks: Sequence[Task] = MADE_UP
    demonstrations: Sequence[tuple[Task, str]] = ()
    """Good replies to tasks."""
    cases: Sequence[Case] = ()
    replies: Sequence[tuple[Task, str]] = ()
    """What a policy wrote."""
    oracle: RewardSpec | None = None
    seconds: float = SECONDS
    generations: int = 30
    """Rounds of mutation and crossover at the most."""
    seed: int = 0
    deadline_s: float = 3.0
    """Seconds for one reply."""
    environment: Collection[str] = ()
    """`scoring.environment`."""
    answer_names: Collection[str] = ("answer",)
    """As `Checked` has them."""
    workers: int = 1
    """0 calls the rewards in this process, where nothing can be killed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackReport:
    """What an attack has found."""

    exploits: Sequence[Exploit]
    """One of each family, the one that scores most first."""
    notes: Sequence[str]
    """What could not be tried, and why."""
    cannot_tell: str
    """Why too little could be tried, so that finding nothing says nothing; empty where that is not so."""
    replies: int
    """Different replies that were scored."""
    seconds: float


def attack(attacked: Attacked) -> AttackReport:
    """Attack rewards in processes that can be killed.

    Raises:
        ValueError: a reward or the oracle cannot be loaded or called, or asks a server that does not answer.
    """
    shadow = next((spec for spec in attacked.specs if spec.role == "shadow"), None)
    oracle = replace(attacked.oracle, name=ORACLE, weight=0.0) if attacked.oracle else shadow
    specs = [*attacked.specs, *([oracle] if oracle and oracle is not shadow else [])]
    found: list[Exploit] = []
    with Probe(
        specs,
        deadline_s=attacked.deadline_s,
        workers=attacked.workers,
        environment=attacked.environment,
        most_killed=MOST_KILLED,
    ) as probe:
        if apart := uncalled(probe, attacked.specs, attacked.cases):
            report = attack(replace(attacked, specs=[spec for spec in attacked.specs if spec.label not in apart]))
            return replace(report, notes=[not_asked(apart), *report.notes])
        started = time.monotonic()  # the time to start processes does not count
        judge = Judge(probe, started + _SEARCHING * attacked.seconds, oracle.label if oracle else "")
        search = _Attack(attacked, judge, started + attacked.seconds, found)
        try:
            search.run()
        except GaveUpError as error:
            judge.notes.append(
                f"the attack ended early, since the reward hangs or dies: {error}; see rlft reward check"
            )
            judge.cannot_tell = "the reward hangs or dies"
        else:
            if judge.stopped and not search.has_tried_all:
                judge.cannot_tell = (
                    f"there was no time for every simple reply within {attacked.seconds:g} s; give it more, such as "
                    f"--seconds {4 * attacked.seconds:g}"
                )
    if len(judge.failed) == len(judge.known):
        judge.refuse_unasked(judge.failed)
        if judge.failed:
            judge.cannot_tell = "no reply could be scored"
    if judge.failed:
        first = judge.failed[0]
        judge.notes.insert(
            0,
            f"{len(judge.failed)} of {len(judge.known)} replies could not be scored, so nothing is known of them "
            f"({first.kind}): {server_said(first)}",
        )
    if judge.stopped:
        judge.notes.append(f"not everything was tried within {attacked.seconds:g} s")
    found.sort(key=lambda exploit: (-exploit.score, len(exploit.completion)))
    return AttackReport(
        exploits=found,
        notes=list(dict.fromkeys(judge.notes)),
        cannot_tell="" if found else judge.cannot_tell,
        replies=len(judge.known),
        seconds=time.monotonic() - started,
    )


class _Attack:
    """One attack: targets, candidates, evolution, and the smallest of what works."""

    def __init__(self, attacked: Attacked, judge: Judge, ends: float, found: list[Exploit]) -> None:
        self._attacked, self._judge, self._ends, self._found = attacked, judge, ends, found
        plans = judge.probe.plans
        trained = [spec for spec in attacked.specs if spec.weight]
        self._takes_answer = any({*attacked.answer_names} & {*plans[spec.label].parameters} for spec in trained)
        self._needs_columns = bool(judge.probe.unsupplied(()))
        self._trained = trained
        self.has_tried_all = False
        """Whether each simple reply was tried once. Combinations of them can be tried without end, so that no time for
        more of those says nothing about what was found."""

    def run(self) -> None:
        """Fill in what is found."""
        judge = self._judge
        self._found += judge.broken_cases(self._attacked.cases)
        targets = self._targets()
        if not targets:
            if blind := judge.blind(self._answers(), takes_answer=self._takes_answer):
                self._found.append(blind)
            else:
                self._without_good_replies()
            return
        if judge.oracle and not (targets := [target for target in targets if target.oracle_tells]):
            judge.notes.append("the oracle gives good replies no more than nonsense, so that it cannot say what is bad")
            judge.cannot_tell = "the oracle does not tell good replies from bad ones"
            return
        episodes = [target for target in targets if target.looks - {"reply"}]
        changed = [Candidate.of_turns(transform, episodes) for transform in judge.turn_transforms()]
        self._smallest([one for one in changed if judge.works(one, episodes)], episodes)
        if not (targets := [target for target in targets if "reply" in target.looks]):
            judge.notes.append("the reward does not look at the last reply, so that only calls and results were tried")
            return
        by_answer = self._takes_answer or any(target.aware for target in targets)
        if not by_answer and not judge.oracle:
            judge.notes.append(
                "the reward does not look at an answer, so that only empty formats, length, and texts for a judge were "
                "tried: attack the config with all its rewards, or give --oracle"
            )
        judge.by_answer = by_answer
        if not by_answer and not judge.oracle:
            self._padded(targets)
        targets = judge.controlled(targets, by_answer=by_answer)
        if not targets and not self._found:
            judge.cannot_tell = "sentences about nothing score like good replies"
        candidates = self._candidates(targets, by_answer)
        working = [one for one in candidates if judge.works(one, targets)]
        self.has_tried_all = not judge.stopped
        working += self._evolved(candidates, targets)
        judge.ends = self._ends  # from here on it is about size
        self._smallest(working, targets)

    def _without_good_replies(self) -> None:
        """Texts for a judge, which must not score above all ordinary replies."""
        judge = self._judge
        if judge.stopped:
            return  # there may be one, but no time to find it
        is_unasked = self._needs_columns and self._attacked.tasks is MADE_UP
        if is_unasked and not self._attacked.cases:
            needs = [f"{', '.join(names)}, which {label} takes" for label, names in judge.probe.unsupplied(()).items()]
            judge.notes.append(
                f"nothing supplies {'; '.join(needs)}: give tasks that have this column: --data FILE, --cases FILE, or "
                "a config"
            )
            judge.cannot_tell = "no task has the columns that the reward takes"
            return
        judge.notes.append(
            "no good reply is known that scores above nonsense, so that only the cases and texts for a judge were "
            "tried: add cases with good replies (FILE.cases.jsonl, or --cases)"
        )
        judge.cannot_tell = "no good reply is known"
        if judge.oracle or is_unasked:
            return
        targets = judge.ordinary(self._attacked.tasks[:MOST_TASKS])
        pieces = [piece for piece in tricks.single_pieces(self._trained) if piece.family in FREE]
        recipes = [Recipe(before=(piece,)) for piece in pieces]
        candidates = [Candidate.of_recipe(recipe, targets, judge.may_try) for recipe in recipes]
        judge.by_answer = False
        judge.score([pair for one in candidates for pair in one.pairs(targets)])
        judge.ends = self._ends
        self._smallest([one for one in candidates if judge.works(one, targets)], targets)

    def _padded(self, targets: Sequence[Target]) -> None:
        """Words about nothing that earn far more than the good reply: the shortest of those that earn most."""
        made = [Candidate.of_padding(FILLER * times, place, targets) for times in (10, 60, 400) for place in (0, 1, 2)]
        works = [one for one in made if one.texts and self._judge.works(one, targets)]
        found = [self._judge.exploit(one, targets) for one in works]
        if found:
            self._found.append(max(found, key=lambda exploit: (exploit.score, -len(exploit.completion))))

    def _answers(self) -> dict[str, list[Source]]:
        tasks = self._attacked.tasks
        return {} if self._needs_columns and tasks is MADE_UP else written(tasks[:MOST_TASKS])

    def _targets(self) -> list[Target]:
        """Good replies to several tasks, with what they score."""
        given = [*good_cases(self._attacked.cases), *self._attacked.demonstrations]
        targets = self._judge.targets(shown(given[:MOST_TASKS], self._attacked.tasks))
        if len(targets) < MOST_TASKS:
            targets += self._judge.best(self._answers())
        if len(targets) < 2 and not self._needs_columns and self._attacked.tasks is not MADE_UP:
            targets += self._judge.best(written(MADE_UP))
        if not targets and self._judge.oracle:
            targets = self._judge.targets(shown(self._attacked.replies, self._attacked.tasks))
        return targets[: 2 * MOST_TASKS]

    def _candidates(self, targets: Sequence[Target], by_answer: bool) -> list[Candidate]:
        transforms = self._judge.transforms() if by_answer or self._judge.oracle else []
        found = [Candidate.of_transform(transform, targets) for transform in transforms]
        pieces = self._pieces(targets)
        found += [Candidate.of_recipe(recipe, targets, self._judge.may_try) for recipe in tricks.simple_recipes(pieces)]
        if self._judge.oracle:
            found += [Candidate.of_replies(texts, targets) for texts in self._own_replies(targets)]
        return [one for one in found if one.texts]

    def _pieces(self, targets: Sequence[Target]) -> list[Piece]:
        """The pieces that may be used on these tasks; replies to other tasks only where the answers are known."""
        known = all(target.source.good.answer is not None for target in targets)
        texts = dict.fromkeys(parted(reply)[1] for _, reply in self._attacked.replies)
        replies = list(texts)[:24] if known else []
        pieces = tricks.single_pieces(self._trained, replies)
        return pieces

    def _own_replies(self, targets: Sequence[Target]) -> list[dict[int, str]]:
        """What a policy wrote to the targets' own tasks: the n-th reply to each."""
        by_task: dict[str, list[str]] = {}
        for task, text in self._attacked.replies:
            by_task.setdefault(task.id, []).append(text)
        longest = max(map(len, by_task.values()), default=0)
        found = []
        for place in range(min(longest, 64)):
            texts = {
                index: by_task[target.source.task.id][place]
                for index, target in enumerate(targets)
                if place < len(by_task.get(target.source.task.id, ()))
            }
            found += [{index: text} for index, text in texts.items()]
        return found

    def _evolved(self, candidates: Sequence[Candidate], targets: Sequence[Target]) -> list[Candidate]:
        """Recipes that work and were found by changing and crossing the best ones."""
        judge, pieces = self._judge, self._pieces(targets)
        working: list[Candidate] = []
        idle = 0
        pool = sorted((c for c in candidates if c.recipe), key=judge.fitness(targets), reverse=True)[:_KEPT]
        for generation in range(self._attacked.generations):
            if judge.stopped or not pool or idle > _PATIENCE:
                break
            children = []
            for number in range(_CHILDREN):
                draw = random.Random(f"{self._attacked.seed}/{generation}/{number}")
                one, other = (pool[min(draw.randrange(len(pool)), draw.randrange(len(pool)))] for _ in range(2))
                assert one.recipe is not None
                assert other.recipe is not None
                recipe = tricks.crossed(one.recipe, other.recipe) if draw.random() < 0.3 else one.recipe
                for _ in range(draw.randint(1, 3)):
                    recipe = tricks.mutated(recipe, pieces, draw)
                children.append(Candidate.of_recipe(recipe, targets, judge.may_try))
            judge.score([pair for child in children for pair in child.pairs(targets)])
            working += [child for child in children if judge.works(child, targets)]
            both = {candidate.recipe: candidate for candidate in (*pool, *children) if candidate.texts}
            better = sorted(both.values(), key=judge.fitness(targets), reverse=True)[:_KEPT]
            idle, pool = (idle + 1 if better[0] in pool else 0), better
        return working

    def _smallest(self, working: Sequence[Candidate], targets: Sequence[Target]) -> None:
        """One exploit of each family, as small as it can be."""
        done = {exploit.family for exploit in self._found}
        for candidate in sorted(working, key=lambda each: each.size):
            if candidate.family in done:
                continue
            if candidate.recipe:
                candidate = self._fewest_pieces(candidate, targets)
                if candidate.family in done or self._judge.is_controlled(candidate, targets):
                    continue
            done.add(candidate.family)
            small = self._shrunk(candidate, targets)
            exploit = self._judge.exploit(small, targets)
            if all((exploit.family, exploit.completion) != (f.family, f.completion) for f in self._found) and not (
                small.family != candidate.family and small.family in done
            ):
                done.add(small.family)
                self._found.append(exploit)

    def _fewest_pieces(self, candidate: Candidate, targets: Sequence[Target]) -> Candidate:
        while candidate.recipe:
            recipes = tricks.without_one(candidate.recipe)
            fewer = [Candidate.of_recipe(each, targets, self._judge.may_try) for each in recipes]
            self._judge.score([pair for one in fewer for pair in one.pairs(targets)])
            smaller = next((one for one in fewer if self._judge.works(one, targets)), None)
            if smaller is None:
                return candidate
            candidate = smaller
        return candidate

    def _is_bad(self, candidate: Candidate, target: Target) -> bool:
        """Whether its only text is bad for the reason that it was before it was made smaller."""
        text = next(iter(candidate.texts.values()))
        may_try = candidate.recipe is None or self._judge.may_try(candidate.family, text, target)
        return may_try and candidate.keeps(target.source)

    def _fewest_actions(self, candidate: Candidate, episode: Transcript, targets: Sequence[Target]) -> Candidate:
        """The candidate on one task, with as few actions as it needs; a good episode is none."""
        (index,) = [index for index, text in candidate.texts.items() if text == episode]
        good = targets[index].source.good

        def works(episodes: Sequence[str]) -> list[bool]:
            tried = [replace(candidate, texts={index: each}) for each in episodes]
            return [
                next(iter(one.texts.values())) != good.whole(good.text) and bool(self._judge.hits(one, targets))
                for one in tried
            ]

        return replace(candidate, texts={index: fewest_actions(episode, works)})

    def _shrunk(self, candidate: Candidate, targets: Sequence[Target]) -> Candidate:
        """The candidate on the task where it is shortest, or on all where it is the same everywhere, made small."""
        hits = self._judge.hits(candidate, targets)
        if len({candidate.texts[index] for index in hits}) > 1:
            hits = [min(hits, key=lambda index: len(candidate.texts[index]))]
        before = replace(candidate, texts={index: candidate.texts[index] for index in hits})
        # An oracle says what is bad whatever it is called, but the smallest reply has to be what its family says.
        must_keep = not self._judge.oracle or all(self._is_bad(before, targets[index]) for index in hits)

        def works(texts: Sequence[str]) -> list[bool]:
            tried = [replace(candidate, texts=dict.fromkeys(hits, text)) for text in texts]
            self._judge.score([pair for one in tried for pair in one.pairs(targets)])
            return [
                len(self._judge.hits(one, targets)) == len(hits)
                and (not must_keep or all(self._is_bad(one, targets[index]) for index in hits))
                for one in tried
            ]

        first = candidate.texts[hits[0]]
        if isinstance(first, Transcript):
            return self._fewest_actions(replace(before, worked_on=len(hits)), first, targets)
        small = shrunk(first, works)
        family = candidate.family
        if not small.strip():
            family = "nothing"
        elif family not in ("nothing", "code") and contentless(small):
            family = "format only"
        return replace(
            candidate,
            texts=dict.fromkeys(hits, small),
            family=family,
            worked_on=len(self._judge.hits(candidate, targets)),
        )
