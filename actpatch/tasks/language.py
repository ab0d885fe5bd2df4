"""Tasks of language and knowledge: gendered pronoun, subject-verb agreement, capitals.

The words are those of `tasks.words`. Where the model's tokenizer splits a word, the word is left out, and a task
that has too few words left says so. All of the tasks name END, the last token, and the positions listed with each.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from actpatch.tasks import words as task_templates
from actpatch.tasks.generated import GeneratedTask, TaskPair, forms_in, listed, spaced, usable


class GenderedPronounDataset(GeneratedTask):
    """He or she, by the name (Mathwin et al. 2023).

    "John went home because" is continued with " he" and not " she". The corruption puts a name of the other gender in
    the place of the name. Both genders and all templates take turns.

    Named position: NAME.

    Args:
        model: the model whose tokenizer decides which names are single tokens.
        n_pairs: number of pairs.
        seed: seed of the choice of names.
        templates: sentences with the slot {NAME}.
        male_names: names answered with " he"; by default those of `tasks.words.MALE_NAMES` that are one token
            (without a space before it too, for templates that begin with the name).
        female_names: names answered with " she"; likewise.

    Raises:
        ValueError: for a template without its slot, a name of several tokens, no name left, or more pairs than can be
            made.
    """

    roles = ("NAME",)

    def __init__(
        self,
        model: Any,
        n_pairs: int = 10,
        *,
        seed: int = 0,
        templates: Sequence[str] = task_templates.PRONOUN_TEMPLATES,
        male_names: Sequence[str] | None = None,
        female_names: Sequence[str] | None = None,
    ) -> None:
        self._templates = _with_one_slot(templates, "NAME")
        kinds = {
            "male": (task_templates.MALE_NAMES, male_names),
            "female": (task_templates.FEMALE_NAMES, female_names),
        }
        self._forms = [forms_in(template, "NAME") for template in self._templates]
        self._names = {
            (gender, texts): usable(
                model,
                known,
                given,
                texts=texts,
                at_least=1,
                what=f"gendered pronoun needs at least one {gender} name",
                remedy=f"give others with {gender}_names=[...]",
            )
            for gender, (known, given) in kinds.items()
            for texts in set(self._forms)
        }
        male, female = (
            {name for (of, _), names in self._names.items() if of == gender for name in names} for gender in kinds
        )
        if male & female:
            raise ValueError(f"{sorted(male & female)} are male and female names: give each name in one list alone")
        super().__init__(model, n_pairs, seed=seed)

    @property
    def name(self) -> str:
        return "gendered pronoun"

    @property
    def varies(self) -> str:
        return "the name, and with it the gender that it suggests"

    @property
    def material(self) -> str:
        return f"{len(set().union(*self._names.values()))} names and {len(self._templates)} templates"

    def draw(self, chooser: random.Random, turn: int) -> TaskPair:
        round_of_templates, at = divmod(turn, len(self._templates))
        male, female = ("male", task_templates.MALE_PRONOUN), ("female", task_templates.FEMALE_PRONOUN)
        (gender, right), (other, wrong) = (female, male) if round_of_templates % 2 else (male, female)
        return TaskPair(
            template=self._templates[at],
            clean_words={"NAME": chooser.choice(self._names[gender, self._forms[at]])},
            corrupted_words={"NAME": chooser.choice(self._names[other, self._forms[at]])},
            correct=(right,),
            incorrect=(wrong,),
            group=f"{gender} name",
        )


class AgreementDataset(GeneratedTask):
    """Is or are, by the subject and not by the noun that stands nearer (Linzen et al. 2016).

    "The keys on the table" is continued with " are" and not " is". The corruption puts the subject's other number in
    its place; the distractor stays. All four combinations of the two numbers take turns.

    Named positions: SUBJECT and DISTRACTOR, which is also END.

    Args:
        model: the model whose tokenizer decides which nouns are single tokens.
        n_pairs: number of pairs.
        seed: seed of the choice of nouns and prepositions.
        subjects: (singular, plural) of nouns to choose from. By default those of `tasks.words.SUBJECT_NOUNS` whose
            two forms are one token each.
        distractors: likewise, by default of `tasks.words.DISTRACTOR_NOUNS`.

    Raises:
        ValueError: for a noun of several tokens, no noun left, or more pairs than can be made.
    """

    roles = ("SUBJECT", "DISTRACTOR")

    def __init__(
        self,
        model: Any,
        n_pairs: int = 10,
        *,
        seed: int = 0,
        subjects: Sequence[tuple[str, str]] | None = None,
        distractors: Sequence[tuple[str, str]] | None = None,
    ) -> None:
        self._subjects, self._distractors = (
            usable(
                model,
                known,
                given,
                texts=lambda forms: [f" {form}" for form in forms],
                at_least=1,
                what=f"agreement needs singular and plural of at least one of its {option}",
                remedy=f"give others with {option}=[(singular, plural), ...]",
            )
            for option, known, given in (
                ("subjects", task_templates.SUBJECT_NOUNS, _noun_forms("subjects", subjects)),
                ("distractors", task_templates.DISTRACTOR_NOUNS, _noun_forms("distractors", distractors)),
            )
        )
        self._prepositions = usable(
            model,
            task_templates.PREPOSITIONS,
            None,
            texts=spaced,
            at_least=1,
            what="agreement needs at least one preposition",
            remedy="choose another task for this model",
        )
        super().__init__(model, n_pairs, seed=seed)

    @property
    def name(self) -> str:
        return "subject-verb agreement"

    @property
    def varies(self) -> str:
        return "the number of the subject; the nearer noun keeps its own"

    @property
    def material(self) -> str:
        return (
            f"{len(self._subjects)} subjects, {len(self._distractors)} distractors and "
            f"{len(self._prepositions)} prepositions"
        )

    def draw(self, chooser: random.Random, turn: int) -> TaskPair:
        plural, plural_distractor = turn % 2, turn // 2 % 2
        subject = chooser.choice(self._subjects)
        verbs = (task_templates.SINGULAR_VERB, task_templates.PLURAL_VERB)
        return TaskPair(
            template=task_templates.AGREEMENT_TEMPLATE,
            clean_words={
                "SUBJECT": subject[plural],
                "PREPOSITION": chooser.choice(self._prepositions),
                "DISTRACTOR": chooser.choice(self._distractors)[plural_distractor],
            },
            corrupted_words={"SUBJECT": subject[1 - plural]},
            correct=(verbs[plural],),
            incorrect=(verbs[1 - plural],),
            group=f"{'plural' if plural else 'singular'} subject",
        )


class CapitalsDataset(GeneratedTask):
    """The capital of a country: a fact, which the model has to know.

    "The capital of France is" is continued with " Paris". The corruption names another country, whose capital is the
    incorrect answer. The templates take turns.

    Named position: COUNTRY.

    Args:
        model: the model whose tokenizer decides which countries and capitals are single tokens.
        n_pairs: number of pairs.
        seed: seed of the choice of countries.
        templates: sentences with the slot {COUNTRY}.
        capitals: country -> capital. By default those of `tasks.words.CAPITALS` that are one token each.

    Raises:
        ValueError: for a template without its slot, a country or capital of several tokens, fewer than two countries,
            or more pairs than can be made.
    """

    roles = ("COUNTRY",)

    def __init__(
        self,
        model: Any,
        n_pairs: int = 10,
        *,
        seed: int = 0,
        templates: Sequence[str] = task_templates.CAPITAL_TEMPLATES,
        capitals: Mapping[str, str] | None = None,
    ) -> None:
        self._templates = _with_one_slot(templates, "COUNTRY")
        if capitals is not None and not isinstance(capitals, Mapping):
            raise ValueError(f"capitals is {capitals!r}, expected a mapping {{country: capital}}")
        self._capitals = task_templates.CAPITALS if capitals is None else dict(capitals)
        if len(set(self._capitals.values())) < len(self._capitals):
            raise ValueError("capitals gives two countries the same capital: each needs its own, to be told apart by")
        self._forms = [forms_in(template, "COUNTRY") for template in self._templates]
        self._countries = {forms: self._usable_countries(model, forms, capitals) for forms in set(self._forms)}
        super().__init__(model, n_pairs, seed=seed)

    @property
    def name(self) -> str:
        return "capitals"

    @property
    def varies(self) -> str:
        return "the country, and with it the capital"

    @property
    def material(self) -> str:
        return f"{len(set().union(*self._countries.values()))} countries and {len(self._templates)} templates"

    def draw(self, chooser: random.Random, turn: int) -> TaskPair:
        at = turn % len(self._templates)
        country, other = chooser.sample(self._countries[self._forms[at]], 2)
        right, wrong = (f" {self._capitals[name]}" for name in (country, other))
        return TaskPair(self._templates[at], {"COUNTRY": country}, {"COUNTRY": other}, (right,), (wrong,))

    def _usable_countries(
        self, model: Any, forms: Callable[[str], tuple[str, ...]], given: Mapping[str, str] | None
    ) -> list[str]:
        return usable(
            model,
            self._capitals,
            given,
            texts=lambda country: (*forms(country), f" {self._capitals[country]}"),
            at_least=2,
            what="capitals need at least two countries that with their capitals are words",
            remedy="give others with capitals={country: capital}",
        )


def _with_one_slot(templates: Sequence[str], slot: str) -> Sequence[str]:
    expected = f"a list of sentences with {{{slot}}}"
    sentences = listed(templates, expected)
    if not sentences:
        raise ValueError(f"templates is [], expected {expected}")
    for template in sentences:
        if task_templates.slots(template) != (slot,):
            found = sorted(task_templates.slots(template))
            raise ValueError(f"the template {template!r} has the slots {found}, expected {{{slot}}} alone")
    return sentences


def _noun_forms(option: str, given: Sequence[tuple[str, str]] | None) -> list[tuple[str, str]] | None:
    if given is None:
        return None
    nouns = listed(given, f"a list: give {option}=[(singular, plural), ...]")
    for forms in nouns:
        if not isinstance(forms, (tuple, list)) or len(forms) != 2:
            raise ValueError(f"{option} holds {forms!r}, expected (singular, plural), for instance ('key', 'keys')")
    return [(singular, plural) for singular, plural in nouns]
