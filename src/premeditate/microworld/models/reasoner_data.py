"""What the tiny reasoner is taught: tasks, imperfect edits, and the true words for each of the four skills.

Truth never comes from a model: plans and checklists come with the task, answers from `checker.answer` on the decoded
picture, critiques from `true_critique`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from premeditate.microworld import checker
from premeditate.microworld.language import PlanError, Step, canonical, execute, parse_plan, to_text
from premeditate.microworld.render import CELL, render_codes, templates
from premeditate.microworld.scene import CELL_NAMES, CELLS, COLOURS, GRID, SHAPES, SIZES, Scene, Thing, random_thing
from premeditate.microworld.tasks import MicroTask
from premeditate.prompts.terse import Terse

PROMPTS = Terse()
NAMED = 2
"""How many wrong cells a critique names."""


@dataclass(frozen=True)
class Branch:
    """One question about the pictures and what to say. For the auxiliary losses: `marks`, per cell, the content code
    that it should come to hold, or that speaks for a no, -1 elsewhere; `shows`, the content code in the edit of the
    cell asked about, or -1; `foresee`, (words before the last prompt, the last prompt, the right one): while reading
    the last prompt, the model is to foresee the right one, up to the first wrong word."""

    skill: str
    prompt: str
    answer: str
    dimension: str = ""
    marks: tuple[int, ...] | None = None
    shows: int = -1
    foresee: tuple[str, str, str] | None = None


@dataclass(frozen=True)
class Item:
    """Pictures uint8 [n, 64, 64, 3], what each cell shows (codes [n, 16]; sharp [n, 16]), and the questions."""

    images: np.ndarray
    codes: np.ndarray
    sharp: np.ndarray
    branches: tuple[Branch, ...]
    family: str


@dataclass
class Picture:
    """An edit under construction: `codes` 16 contents; `spoil` maps a cell to its 16x16 RGB pixels; `murky` cells are
    so mixed that no content can be said to be there."""

    codes: list[int]
    spoil: dict[int, np.ndarray] = field(default_factory=dict)
    murky: set[int] = field(default_factory=set)

    def pixels(self) -> np.ndarray:
        image = render_codes(np.array([self.codes]))[0].copy()
        for cell, patch in self.spoil.items():
            row, column = divmod(cell, GRID)
            image[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = patch
        return image


def weather(image: np.ndarray, rng: random.Random, strength: float = 1.0) -> np.ndarray:
    """Slight noise, brightness and contrast changes, as an editor's decoder leaves them. uint8 in, uint8 out."""
    if rng.random() < 0.25:
        return image
    noise = np.random.default_rng(rng.getrandbits(32))
    x: np.ndarray = image.astype(np.float32)
    x = (x - 128) * rng.uniform(1 - 0.04 * strength, 1 + 0.04 * strength) + 128 + rng.uniform(-5, 5) * strength
    if rng.random() < 0.5:
        coarse = noise.normal(0, rng.uniform(0, 7) * strength, (16, 16, 3)).repeat(4, 0).repeat(4, 1)
        x = x + coarse
    x = x + noise.normal(0, rng.uniform(0, 7) * strength, image.shape)
    return np.clip(np.round(x), 0, 255).astype(np.uint8)


def near_miss(thing: Thing, rng: random.Random) -> Thing:
    """Another thing that differs in one attribute."""
    which = rng.choice(("colour", "colour", "shape", "size"))
    if which == "colour":
        return thing._replace(colour=rng.choice([c for c in COLOURS if c != thing.colour]))
    if which == "shape":
        return thing._replace(shape=rng.choice([s for s in SHAPES if s != thing.shape]))
    return thing._replace(size=SIZES[1 - SIZES.index(thing.size)])


def corrupt(picture: Picture, source: Scene, target: Scene, rng: random.Random) -> None:
    """One mistake of the kinds that editors make: a cell left as it was, a near miss, a missing, an extra or a damaged
    kept thing."""
    changed = source.changed(target)
    kind = rng.choice(("left", "miss", "miss", "empty", "extra", "kept", "source"))
    if kind == "source":
        picture.codes[:] = source.codes
        return
    if kind == "left":
        cell = rng.choice(changed)
        picture.codes[cell] = source.codes[cell]
        return
    if kind == "extra":
        cell = rng.choice([i for i, code in enumerate(picture.codes) if code == 0])
        picture.codes[cell] = random_thing(rng).code
        return
    full = [i for i in range(CELLS) if target[i] is not None]
    focus = [i for i in full if i in changed] if kind != "kept" and rng.random() < 0.7 else full
    cell = rng.choice(focus or full or changed)
    thing = target[cell]
    if thing is None or kind == "empty" or (kind == "kept" and rng.random() < 0.35):
        picture.codes[cell] = 0 if thing is not None else random_thing(rng).code
    else:
        picture.codes[cell] = near_miss(thing, rng).code


def blur(patch: np.ndarray, times: int) -> np.ndarray:
    """Repeated 3x3 box blurs, float."""
    x: np.ndarray = patch.astype(np.float32)
    for _ in range(times):
        padded = np.pad(x, ((1, 1), (1, 1), (0, 0)), mode="edge")
        x = np.sum([padded[i : i + CELL, j : j + CELL] for i in range(3) for j in range(3)], axis=0) / 9
    return x


def spoil(picture: Picture, source: Scene, target: Scene, rng: random.Random) -> None:
    """Makes one cell unsharp: blurred, washed out, a mix of two contents, or noise."""
    table = templates()
    full = [i for i, code in enumerate(picture.codes) if code]
    changed = source.changed(target)
    cell = rng.choice(changed) if rng.random() < 0.5 or not full else rng.choice(full)
    code = picture.codes[cell]
    here = table[cell, code].astype(np.float32)
    kind = rng.choice(("blur", "mix", "mix", "fade", "noise"))
    if kind == "blur" and code:
        patch = blur(here, rng.randint(8, 40))
    elif kind == "fade" and code:
        patch = here + (table[cell, 0] - here) * rng.uniform(0.43, 0.57)
    elif kind == "noise":
        noise = np.random.default_rng(rng.getrandbits(32))
        patch = here + noise.normal(0, rng.uniform(35, 70), (CELL // 2, CELL // 2, 3)).repeat(2, 0).repeat(2, 1)
    else:
        wanted = [source.codes[cell], target.codes[cell], near_miss(target[cell] or random_thing(rng), rng).code, 0]
        others = [c for c in wanted if c != code] or [random_thing(rng).code]
        patch = here + (table[cell, rng.choice(others)] - here) * rng.uniform(0.43, 0.57)
    picture.spoil[cell] = np.clip(np.round(patch), 0, 255).astype(np.uint8)
    picture.murky.add(cell)


def wanted(cell: int, thing: Thing | None) -> str:
    """The critique's words for what a cell should hold."""
    name = CELL_NAMES[cell]
    return f"{name} should be empty" if thing is None else f"{name} should be a {thing}"


def true_critique(
    target: Scene, codes: Sequence[int], sharp: Sequence[bool], plan: Sequence[str], last: Sequence[str]
) -> str:
    """What the critic should say of an edit, in the terse form.

    `codes`, `sharp`: the decoded edit, 16 each. `plan`: the right steps. A cell that is not sharp "is blurred" whatever
    it may hold; a sharp cell that differs from the target "should be ...". At most two are named, in reading order.
    semantic = 10 - 3 per sharp wrong cell, quality = 10 - 3 per cell that is not sharp, neither below 0. A good edit's
    prompt is the last one.
    """
    words, wrong, dull = [], 0, 0
    for cell in range(CELLS):
        if not sharp[cell]:
            dull += 1
            words.append(f"{CELL_NAMES[cell]} is blurred")
        elif codes[cell] != target.codes[cell]:
            wrong += 1
            words.append(wanted(cell, target[cell]))
    prompt = plan if words else last
    return PROMPTS.write_critique(
        " and ".join(words[:NAMED]), max(0, 10 - 3 * wrong), max(0, 10 - 3 * dull), prompt, "original"
    )


def wrong_plan(task: MicroTask, rng: random.Random) -> tuple[Step, ...] | None:
    """The right plan with one word altered or one step lost, such that it can be carried out and misses the target."""
    if len(task.steps) > 1 and rng.random() < 0.3:
        skip = rng.randrange(len(task.steps))
        words = to_text([s for i, s in enumerate(task.steps) if i != skip]).split()
    else:
        words = to_text(task.steps).split()
        pools = [p for p in (COLOURS, SHAPES, SIZES, CELL_NAMES) if any(w in p for w in words)]
        pool = rng.choice(pools)
        place = rng.choice([i for i, w in enumerate(words) if w in pool])
        words[place] = rng.choice([w for w in pool if w != words[place]])
        if pool is CELL_NAMES and rng.random() < 0.5:
            full = [CELL_NAMES[i] for i, _ in task.source.things()]
            words[place] = rng.choice(full)
    try:
        steps, reached = canonical(task.source, parse_plan(" ".join(words)))
    except PlanError:
        return None
    return None if reached == task.target or reached == task.source else steps


def draw_edit(
    task: MicroTask, rng: random.Random, misled: float = 0.25, own: tuple[str, ...] | None = None
) -> tuple[Picture, tuple[str, ...]]:
    """An edit of the task, good or bad, and the prompt that it came from. `misled`: the share of edits that follow a
    wrong plan; of the rest, two in five are good. `own`: the edit follows these steps, nearly always to the letter."""
    last, picture, u = task.plan, Picture(list(task.target.codes)), rng.random()
    if own is not None:
        followed = execute(task.source, parse_plan(" then ".join(own)))
        picture.codes[:] = followed.codes
        if u < 0.1:
            (corrupt if u < 0.05 else spoil)(picture, task.source, followed, rng)
        return picture, own
    u = 1.0 if u < misled else 0.75 * (u - misled) / (1 - misled)
    if u >= 0.75:
        for _ in range(8):
            steps = wrong_plan(task, rng)
            if steps is not None:
                last = tuple(map(str, steps))
                picture.codes[:] = execute(task.source, steps).codes
                break
        else:
            u = 0.5
    if rng.random() < 0.12:
        last = (task.instruction,)
    if 0.30 <= u < 0.75:
        dull = u >= 0.52
        if not dull or rng.random() < 0.3:
            for _ in range(rng.choice((1, 1, 2))):
                corrupt(picture, task.source, task.target, rng)
        if dull:
            for _ in range(rng.choice((1, 1, 1, 2))):
                spoil(picture, task.source, task.target, rng)
    return picture, last


def _follow(task: MicroTask, decoded: checker.Decoded, murky: set[int], yes: bool, rng: random.Random) -> str | None:
    """A follow question with the wanted answer, mostly about the cells that the task changes."""
    changed = [i for i in task.source.changed(task.target) if i not in murky]
    cells = changed if changed and rng.random() < 0.7 else [i for i in range(CELLS) if i not in murky]
    right = [i for i in cells if (decoded.scene[i] == task.target[i]) == yes]
    if right and rng.random() < 0.8:
        cell, thing = (c := rng.choice(right)), task.target[c]
    else:
        cell = rng.choice(cells)
        here = decoded.scene[cell]
        options = [here] if yes else [task.source[cell], near_miss(here, rng) if here else random_thing(rng), None]
        options = options if yes else [t for t in options if t != here]
        thing = rng.choice(options)
    name = CELL_NAMES[cell]
    return f"is {name} empty?" if thing is None else f"is there a {thing} at {name}?"


def _keep(task: MicroTask, decoded: checker.Decoded, yes: bool, rng: random.Random) -> str:
    """A keep question; the wanted answer is aimed at, not promised."""
    cells = task.source.changed(task.target)
    really = task.source.changed(decoded.scene)
    if all(i in cells for i in really) != yes:
        if yes:
            cells = sorted(set(cells) | set(really))
        elif really:
            lost = rng.choice(really)
            others = [i for i in range(CELLS) if i != lost and i not in cells]
            cells = [i for i in cells if i != lost]
            if not cells or rng.random() < 0.5:
                cells = sorted([*cells, rng.choice(others)])
        if len(cells) > 6:
            cells = task.source.changed(task.target)
    return f"is everything except {' and '.join(CELL_NAMES[i] for i in cells)} unchanged?"


def draw_question(
    dimension: str, task: MicroTask, decoded: checker.Decoded, murky: set[int], rng: random.Random
) -> Branch | None:
    """A question of a dimension with its true answer, yes and no in equal parts; None where truth is a matter of taste
    (a mixed cell) or where the draw did not come out."""
    want = rng.random() < 0.5
    if dimension == "quality":
        text = "is every shape sharp?"
        if all(decoded.sharp) and rng.random() < 0.55:
            return None
    elif dimension == "keep":
        text = _keep(task, decoded, want, rng)
        if any(CELL_NAMES[i] not in text for i in murky):
            return None
    else:
        text = _follow(task, decoded, murky, want, rng) or ""
    truth = checker.answer(text, task.source, decoded)
    if truth is None or (dimension != "quality" and truth != want):
        return None
    named = [i for i, name in enumerate(CELL_NAMES) if name in text.rstrip("?").split()]
    shows, marks = -1, None
    if dimension == "follow":
        shows = decoded.scene.codes[named[0]]
    else:
        stray = [i for i in task.source.changed(decoded.scene) if i not in named]
        guilty = stray if dimension == "keep" else [i for i in range(CELLS) if not decoded.sharp[i]]
        marks = tuple(decoded.scene.codes[i] if i in guilty else -1 for i in range(CELLS))
    return Branch("answer", PROMPTS.answer(text), "yes" if truth else "no", dimension, marks, shows)


def think_item(task: MicroTask, rng: random.Random, clean: bool = False) -> Item:
    """The source picture with a plan and a checklist question."""
    image = render_codes(np.array([task.source.codes]))
    if not clean and rng.random() < 0.3:
        image = weather(image[0], rng, 0.6)[None]
    marks = tuple(task.target.codes[i] if task.source[i] != task.target[i] else -1 for i in range(CELLS))
    branches = (
        Branch("plan", PROMPTS.plan(task.instruction), PROMPTS.write_plan(task.plan), marks=marks),
        Branch("checklist", PROMPTS.checklist(task.instruction), PROMPTS.write_checklist(task.checklist), marks=marks),
    )
    return Item(image, np.array([task.source.codes]), np.ones((1, CELLS), bool), branches, task.family)


def look_item(
    task: MicroTask,
    rng: random.Random,
    filter_image: Callable[[np.ndarray], np.ndarray] | None = None,
    dimensions: Sequence[str] = ("follow", "keep", "keep", "quality"),
    misled: float = 0.25,
    own: tuple[str, ...] | None = None,
) -> Item:
    """Source and edit with answer questions and a critique. `filter_image`: say a VAE round trip of the edit. `misled`
    and `own`: see `draw_edit`."""
    picture, last = draw_edit(task, rng, misled, own)
    edit = weather(picture.pixels(), rng)
    if filter_image is not None:
        edit = filter_image(edit)
    codes, sharp, distance = (a[0] for a in checker.decode_arrays(edit[None]))
    decoded = checker.Decoded(Scene.from_codes(codes), tuple(map(bool, sharp)), tuple(map(float, distance)))
    questions = [draw_question(d, task, decoded, picture.murky, rng) for d in dimensions]
    marks = tuple(
        task.target.codes[i] if not sharp[i] or codes[i] != task.target.codes[i] else -1 for i in range(CELLS)
    )
    critique = Branch(
        "critique",
        PROMPTS.critique(task.instruction, last),
        true_critique(task.target, codes, sharp, task.plan, last),
        marks=marks,
        foresee=None
        if last == (task.instruction,)
        else (
            PROMPTS.critique(task.instruction, ("",)).rstrip(),
            PROMPTS.write_plan(last),
            PROMPTS.write_plan(task.plan),
        ),
    )
    source = render_codes(np.array([task.source.codes]))[0]
    return Item(
        np.stack([source, edit]),
        np.stack([np.array(task.source.codes), codes]),
        np.stack([np.ones(CELLS, bool), sharp]),
        (*(q for q in questions if q), critique),
        task.family,
    )


__all__ = [
    "NAMED",
    "PROMPTS",
    "Branch",
    "Item",
    "Picture",
    "corrupt",
    "draw_edit",
    "draw_question",
    "look_item",
    "near_miss",
    "spoil",
    "think_item",
    "true_critique",
    "wanted",
    "weather",
    "wrong_plan",
]
