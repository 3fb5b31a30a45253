"""What functions are given and may return, where they are found, and what the built-in ones say by hand-made answers."""

import math
import sys
import warnings

import numpy as np
import pytest
import torch

from zokern.evolve import BadInput, Rewards, Row

ROWS = [Row(f"{i}?", {"answer": str(i), "hint": "h" * i}, f"'sums', line {i}") for i in range(4)]
TEXTS = ["0", "one", "2", "3 or 4"]


def is_right(completions, answer, **others):
    return [text == right for text, right in zip(completions, answer, strict=True)]


def short(completions):
    return [-float(len(text)) for text in completions]


def test_the_sum_is_weighted_and_each_has_its_mean():
    scores = Rewards([is_right, short], [2.0, 0.1])(ROWS, TEXTS)
    assert scores.values == pytest.approx([2 - 0.1, -0.3, 2 - 0.1, -0.6])
    assert scores.means == {"is_right": 0.5, "short": pytest.approx(-11 / 4)}
    assert Rewards([is_right])(ROWS, TEXTS).values == [1.0, 0.0, 1.0, 0.0]


def test_a_function_is_given_what_it_takes():
    seen = {}

    def takes_all(**given):
        seen.update(given)
        return [0] * 4

    def takes_some(prompts, completions, hint, level=3):
        assert (prompts, completions, hint, level) == (["0?", "1?", "2?", "3?"], TEXTS, ["", "h", "hh", None], 3)
        return [0] * 4

    class Judge:
        def __call__(self, completions, *, answer):
            return [len(answer)] * len(completions)

    rows = [*ROWS[:3], Row("3?", {"answer": "3"}, "'sums', line 3")]
    rewards = Rewards([takes_all, takes_some, Judge()])
    rewards.check(rows)
    assert rewards(rows, TEXTS).means == {"takes_all": 0.0, "takes_some": 0.0, "Judge": 4.0}
    assert seen == dict(prompts=["0?", "1?", "2?", "3?"], completions=TEXTS, answer=["0", "1", "2", "3"], hint=["", "h", "hh", None])


def test_completions_of_chat_prompts_are_messages_as_in_trl():
    chat = [{"role": "user", "content": "2 + 2?"}]
    rows = [Row(chat, {"answer": "4"}, "here"), ROWS[0]]

    def seen(prompts, completions):
        assert prompts == [chat, "0?"] and completions == [[{"role": "assistant", "content": "4"}], "1"]
        return [1, 2]

    assert Rewards([seen, "exact:answer"])(rows, ["4", "1"]).values == [2.0, 2.0]


@pytest.mark.parametrize(
    "returned",
    [
        (1, 0.5, True, False),
        np.array([1, 0.5, 1, 0], np.float32),
        torch.tensor([1, 0.5, 1, 0]),
        [np.float16(1), torch.tensor(0.5), np.True_, 0],
    ],
)
def test_numbers_of_any_kind(returned):
    values = Rewards([lambda completions: returned])(ROWS, TEXTS).values
    assert values == [1.0, 0.5, 1.0, 0.0] and {*map(type, values)} == {float}


@pytest.mark.parametrize(
    "returned, said",
    [
        ([1, 2, 3], "returned 3 numbers for 4 rows ('sums', line 0, 'sums', line 1, 'sums', line 2 and 1 more): return one a row"),
        ([1] * 5, "returned 5 numbers for 4 rows"),
        (None, "returned None: return a list with one number for each of the 4 rows"),
        ("1234", "returned '1234': return a list"),
        (0.5, "returned 0.5: return a list"),
        ({1: 1}, "returned {1: 1}: return a list"),
        ([1, "0.5", 1, 1], "returned '0.5' for 'sums', line 1: return a finite number"),
        ([1, 1, None, 1], "returned None for 'sums', line 2: return a finite number"),
        ([1, 1, 1, math.inf], "returned inf for 'sums', line 3: return a finite number"),
        ([1, 10**400, 1, 1], "returned 1000000000"),
        ([1, [1], 1, 1], "returned [1] for 'sums', line 1"),
        ([1, 1j, 1, 1], "returned 1j for 'sums', line 1"),
        ([1, torch.ones(2), 1, 1], "returned [1.0, 1.0] for 'sums', line 1"),
    ],
)
def test_what_is_no_list_of_numbers_is_refused(returned, said):
    def judged(completions):
        return returned

    with pytest.raises(BadInput) as refused:
        Rewards([short, judged])(ROWS, TEXTS)
    assert str(refused.value).startswith(f"reward 'judged' {said}")


def test_nan_is_let_through_with_a_warning():
    def judged(completions):
        return [1.0, math.nan, 1.0, 1.0]

    with pytest.warns(
        RuntimeWarning,
        match="reward 'judged' returned NaN for 'sums', line 1: a member is left out for that, a held-out row is not counted",
    ):
        scores = Rewards([judged, short])(ROWS, TEXTS)
    assert math.isnan(scores.values[1]) and scores.values[0] == 0.0
    assert scores.means == {"judged": 1.0, "short": -11 / 4}
    with pytest.warns(RuntimeWarning, match="returned NaN"):
        assert math.isnan(Rewards([lambda completions: [math.nan]])(ROWS[:1], TEXTS[:1]).means["<lambda>"])


def test_a_function_that_raises_is_named_with_the_row():
    def parsed(completions, answer):
        return [float(text) for text in completions]

    with pytest.raises(BadInput) as refused:
        Rewards([parsed])(ROWS, TEXTS)
    said = "reward 'parsed' raised ValueError: could not convert string to float: 'one' for 'sums', line 1 (completion 'one'): correct "
    assert str(refused.value) == f"{said}{__file__}, line {parsed.__code__.co_firstlineno + 1}" and isinstance(
        refused.value.__cause__, ValueError
    )

    def crowded(completions):
        return [1.0] if len(completions) == 1 else 1 / 0

    with pytest.raises(
        BadInput, match="ZeroDivisionError: division by zero for 'sums', line 0, .* and 1 more: correct .*test_rewards.py, line "
    ):
        Rewards([crowded])(ROWS, TEXTS)


def test_a_column_that_some_rows_lack_is_none_there():
    rows = [Row("0?", {"hint": "h"}, "line 0"), *(Row(f"{i}?", {}, f"line {i}") for i in (1, 2))]

    def hinted(completions, hint):
        return [1.0 if h is None else len(h) / (len(text) - 2) for h, text in zip(hint, completions)]

    rewards = Rewards([hinted])
    rewards.check(rows)
    assert rewards(rows[1:], ["a", "b"]).values == [1.0, 1.0]  # of a batch that has none
    with pytest.raises(
        BadInput, match=r"raised ZeroDivisionError: .* for line 0 \(completion 'no'\): correct .*test_rewards.py, line \d+$"
    ):
        Rewards([hinted])(rows[::-1], ["a", "b", "no"])


def test_a_function_may_change_what_it_is_given():
    rows = [Row([{"role": "user", "content": "2 + 2?"}], {"answers": ["4"]}, "here")]

    def judged(prompts, completions, answers):
        prompts[0].append(completions[0][0])
        answers[0].append("four")
        return [float(len(prompts[0]) + len(answers[0]))]

    rewards = Rewards([judged])
    assert [rewards(rows, ["4"]).values for _ in range(2)] == [[4.0], [4.0]]
    assert rows == [Row([{"role": "user", "content": "2 + 2?"}], {"answers": ["4"]}, "here")]


def test_what_a_function_needs_is_looked_for_before_anything_is_written():
    def needs(completions, anser):
        return [0.0] * len(completions)

    said = r"reward 'needs' takes 'anser', which is no column: it is given prompts, completions, answer, hint \(did you mean 'answer'\?\)"
    with pytest.raises(BadInput, match=said):
        Rewards([needs]).check(ROWS)
    with pytest.raises(BadInput, match="a column is called 'completions', which reward 'short' is given by that name: rename it"):
        Rewards([short]).check([Row("x", {"completions": "y"}, "here")])
    said = "^'sums', line 9 has nothing in the column 'answer', which a reward needs: beside the prompt it has hint$"
    with pytest.raises(BadInput, match=said):
        Rewards(["exact:answer"]).check([*ROWS, Row("9?", {"hint": ""}, "'sums', line 9")])
    Rewards([is_right, short, len]).check(ROWS)


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_of_rewards.py").write_text("def zero(completions):\n    return [0.0] * len(completions)\n\nnumber = 3\n")
    package = tmp_path / "deep" / "package-of rewards"
    package.mkdir(parents=True)
    (package / "beside_of_rewards.py").write_text("ONE = 1.0\n")
    (package / "one.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom beside_of_rewards import ONE\n\n"
        "@dataclass\nclass Value:\n    value: float\n\ndef one(completions):\n    return [Value(ONE).value] * len(completions)\n"
    )
    (tmp_path / "broken_of_rewards.py").write_text("import nothing_of_the_kind\n")
    path, before = [*sys.path], {*sys.modules}
    yield package
    assert sys.path == path
    for name in {*sys.modules} - before:
        if "of_rewards" in name or "rewards_of" in name:
            del sys.modules[name]


def test_functions_are_found_by_module_and_by_file(files):
    specs = ["mine_of_rewards:zero", f"{files}/one.py:one", "deep/package-of rewards/one.py:one"]
    assert Rewards(specs, [1, 2, 4])(ROWS, TEXTS).means == dict(zip(specs, (0.0, 1.0, 1.0)))


@pytest.mark.parametrize(
    "specs, said",
    [
        (["exat"], "reward 'exat' is not known: pass module:function, file.py:function or one of exact:COLUMN, .* (did you mean 'exact'?)"),
        (["exat:answer"], "exat cannot be imported (did you mean 'exact'?) (ModuleNotFoundError: No module named 'exat'):"),
        (["exact"], "reward 'exact' is not whole: write exact:COLUMN"),
        (["number:answer"], "reward 'number:answer' names no mark or no column: write number:MARK:COLUMN"),
        (["number:####:"], "reward 'number:####:' names no mark or no column"),
        (["regex:(a"], "reward 'regex:(a' is no regular expression (error: missing ), unterminated subpattern at position 0): correct it"),
        (["length:0"], "reward 'length:0': pass a whole number of words, 1 or more"),
        (["length:few"], "reward 'length:few': pass a whole number"),
        (["mine_of_rewards:zeros"], "mine_of_rewards has no 'zeros' (did you mean 'zero'?)"),
        (["mine_of_rewards:number"], "reward 'mine_of_rewards:number' is a int, no function"),
        (["broken_of_rewards:f"], "broken_of_rewards cannot be imported (ModuleNotFoundError: No module named 'nothing_of_the_kind')"),
        (["broken_of_rewards.py:f"], "broken_of_rewards.py cannot be imported (ModuleNotFoundError"),
        (["nowhere.py:f"], "reward 'nowhere.py:f': nowhere.py does not exist: check the path"),
        ([], "rewards []: pass a list with one function or more"),
        ("exact:answer", "rewards 'exact:answer': pass a list"),
        ([short, short], "reward 'short' is there twice"),
    ],
)  # fmt: skip
def test_what_is_not_found(files, specs, said):
    with pytest.raises(BadInput) as refused:
        Rewards(specs)
    message = str(refused.value)
    for piece in said.split(".*"):
        assert piece.strip() in message and "\n" not in message


def test_weights_and_functions_that_cannot_be():
    async def later(completions):
        return [0.0]

    for weights in ([1.0], [1.0, math.nan], [1.0, 2.0, 3.0]):
        with pytest.raises(BadInput, match=r"reward weights \[.*\] do not fit 2 rewards: pass one finite number for each"):
            Rewards([short, is_right], weights)
    with pytest.raises(BadInput, match="reward 'later' is asynchronous, which is not supported"):
        Rewards([later])


@pytest.mark.parametrize(
    "spec, answer, right, wrong",
    [
        ("exact:x", "The Eiffel Tower", ["eiffel tower", " Eiffel, tower!\n"], ["eiffel", "", "eiffel towers"]),
        ("exact:x", ["no", "nope"], ["No.", "nope"], ["no nope"]),
        ("exact:x", 7, ["7"], ["7.5", "seven"]),
        ("exact:x", "A", ["A", " (a)", "A."], ["", "the", "+", ".", "an", "B"]),
        ("exact:x", "+", ["+", " +\n"], ["", "-", "a", "."]),
        ("contains:x", ["A", "the"], ["The answer is A.", "(a)"], ["", "+", "an answer", "there"]),
        ("f1:x", ">", [">"], ["", "<", "the"]),
        ("contains:x", "no", ["No.", "the answer is no, sir"], ["I know", "", "nothing"]),
        ("contains:x", ["New York", "NYC"], ["in NYC", "It is new york"], ["York, New"]),
        ("regex:^\\d+$", None, ["42"], ["x42", "4 2"]),
        ("regex:(?s)<a>.*</a>", None, ["so <a>1\n2</a>"], ["<a>"]),
        ("number:####:x", "10 + 8 = 18\n#### 1,018", ["so\n#### 1018", "####1,018.0 #### 3", "#### $1018."], ["1018", "#### -1018"]),
        ("number:Answer::x", "-0.5", ["Answer: -0.50", "Answer: = -.5", "Answer:-$0.5"], ["Answer: 0.5", "Answer: about -0.5"]),
        ("number:=:x", 1e-05, ["= 0.00001", "=1e-5"], ["= 1"]),
        ("number:=:x", 12, ["x = 12 apples"], ["= 120", "= 1.2", "= 1e99999999999999999999"]),
        ("number:=:x", ["5", 6], ["= 6", "= 5.0"], ["= 7", "= 56"]),
    ],
)  # fmt: skip
def test_rewards_that_are_one_or_nothing(spec, answer, right, wrong):
    row = Row("?", {"x": answer}, "here")
    rewards = Rewards([spec])
    assert rewards([row] * len(right), right).values == [1.0] * len(right)
    assert rewards([row] * len(wrong), wrong).values == [0.0] * len(wrong)


def test_rewards_that_are_shares():
    row = Row("?", {"x": ["the cat sat", "a dog"]}, "here")
    f1 = Rewards(["f1:x"])([row] * 4, ["A cat", "dog.", "The big cat sat on", "fish"]).values
    assert f1 == pytest.approx([2 * 1 * 0.5 / 1.5, 1.0, 2 * 0.5 * 1 / 1.5, 0.0])
    length = Rewards(["length:2"])([row] * 4, ["", "one two", " one  two\nthree ", "a b c d"]).values
    assert length == pytest.approx([1.0, 1.0, 2 / 3, 0.5])


def test_an_answer_that_is_no_number_is_refused():
    for answer in ("about 7", ["7", "about 7"]):
        with pytest.raises(BadInput, match="^here, column 'x': 'about 7' is no number, as reward 'number:####:x' needs: correct it"):
            Rewards(["number:####:x"]).check([Row("?", {"x": answer}, "here")])


@pytest.mark.parametrize("spec", ["exact:x", "contains:x", "f1:x", "number:=:x"])
@pytest.mark.parametrize("answer", [None, [], "", " ", ["right", ""], [None]])
def test_an_answer_that_is_blank_is_refused(spec, answer):
    with pytest.raises(BadInput, match="^here has nothing in the column 'x', which a reward needs: beside the prompt it has x$"):
        Rewards([spec]).check([Row("?", {"x": answer}, "here")])


def test_a_run_without_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Rewards([is_right, short, "exact:answer"])(ROWS, TEXTS)
