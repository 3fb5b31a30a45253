"""What a model is asked, word by word; and its scores against full logits in float64, one candidate at a time, nothing padded."""

import pytest
import torch
from task_rows import CASES

from zokern import tasks
from zokern.errors import BadInput
from zokern.tasks import Example, Prompt, reader
from zokern.tasks.prompts import fill

ASKED = [name for name, case in CASES.items() if case.masked]


def example(name, **change):
    case = CASES[name]
    row = case.row | change
    if name == "squad":
        return Example(row, None, "row 1", tuple(row["answers"]["text"]))
    return Example(row, 0 if name == "winogrande" else row["label"], "row 1")


@pytest.mark.parametrize("name", CASES)
def test_prompts_word_by_word(name):
    case, task = CASES[name], tasks.get(name)
    assert fill(task.causal.template, example(name)) == case.causal
    assert tuple(fill(option, example(name)) for option in task.causal.options) == case.options
    if case.masked:
        assert fill(task.masked.template, example(name), "[M]") == case.masked and task.masked.options == case.words
        assert tuple(fill(template, example(name)) for template in task.head) == case.head
    else:
        assert not task.masked and not task.head


@pytest.mark.parametrize(
    "name, change, causal, options",
    [
        ("boolq", dict(question="Is iron a metal?"), "Iron is a metal. Is iron a metal?\n", ("No", "Yes")),
        ("copa", dict(question="effect", choice1="He cried"), "The man fell so ", ("he cried", "I sang.")),
        ("winogrande", dict(sentence="_ ate."), "", ("Ian ate.", "Dennis ate.")),
    ],
)
def test_wordings(name, change, causal, options):
    prompt = tasks.get(name).causal
    assert fill(prompt.template, example(name, **change)) == causal
    assert tuple(fill(option, example(name, **change)) for option in prompt.options) == options


@pytest.mark.parametrize("name", ASKED)
def test_masked_scores_are_the_logits_of_the_words(models, bert, name):
    case, asked = CASES[name], reader(tasks.get(name), "masked", bert)
    model = models("bert", len(bert))
    words = [bert.convert_tokens_to_ids(word.lower()) for word in case.words]
    assert bert.unk_token_id not in words and len(set(words)) == len(words)
    expected = []
    rows = [example(name), example(name, **{tasks.get(name).texts[0]: case.row[tasks.get(name).texts[0]] + " And so on, and on."})]
    for row in rows:
        ids = bert(fill(tasks.get(name).masked.template, row, "[MASK]"), return_tensors="pt")
        logits = model(**ids).logits.double()[0, ids["input_ids"][0].tolist().index(bert.mask_token_id)]
        expected.append(logits[words])
    batch = asked.collate([asked.encode(row) for row in rows])
    scores = asked.scores(model, batch)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), torch.stack(expected), rtol=1e-5, atol=1e-5)
    right = asked.answers(batch)
    assert right.tolist() == [row.label for row in rows]
    loss = -torch.stack(expected).log_softmax(-1)[[0, 1], right].mean()
    assert asked.loss(model, batch).item() == pytest.approx(loss.item(), rel=1e-5) and asked.loss(model, batch).dim() == 0
    assert asked.predictions(model, batch) == torch.stack(expected).argmax(-1).tolist()


def test_words_of_a_byte_level_tokenizer_take_their_space(models, bpe):
    asked = reader(tasks.get("sst2"), "masked", bpe)
    feature = asked.encode(example("sst2"))
    assert bpe.convert_ids_to_tokens(feature["words"]) == ["Ġterrible", "Ġgreat"]
    assert bpe.decode(feature["tokens"]["input_ids"]) == "</s>a warm , funny film It was<mask>."
    at_start = reader(tasks.get("sst2"), "masked", bpe, prompt=Prompt("{option}! {sentence}", ("Y", "N")))
    assert bpe.convert_ids_to_tokens(at_start.encode(example("sst2"))["words"]) == ["Y", "N"]
    model = models("roberta", len(bpe))
    short, long = example("sst2"), example("sst2", sentence="terrible " * 20)
    batch = asked.collate([asked.encode(row) for row in (short, long)])
    alone = [asked.scores(model, asked.collate([asked.encode(row)])) for row in (short, long)]
    torch.testing.assert_close(asked.scores(model, batch), torch.cat(alone), rtol=1e-5, atol=1e-5)


def independent(model, tokenizer, prompt, option, virtual=0):
    """Mean log-probability of the option's tokens after the prompt, in float64, alone and from the full logits."""
    before, ids = (tokenizer(text.strip(" "))["input_ids"] for text in (prompt, prompt + option))
    length = len(ids) - len(before)
    if not before:  # GPT2's tokenizer of an empty prompt: something has to stand before the option
        before, ids = [tokenizer.bos_token_id], [tokenizer.bos_token_id, *ids]
    assert ids[: len(before)] == before and length > 0
    logits = model(input_ids=torch.tensor([ids])).logits[0, virtual:].double().log_softmax(-1)
    return float(sum(logits[t - 1, ids[t]] for t in range(len(ids) - length, len(ids))) / length)


@pytest.mark.parametrize("begins", [True, False])
@pytest.mark.parametrize("kind", ["opt", "gpt2", "llama"])
@torch.no_grad()
def test_causal_scores_are_mean_log_probabilities(models, bpe, bare_bpe, kind, begins):
    tokenizer = bpe if begins else bare_bpe
    model = models(kind, len(tokenizer))
    for name in ASKED:
        task, asked = tasks.get(name), reader(tasks.get(name), "causal", tokenizer)
        rows = [example(name)]
        if name == "winogrande":
            rows.append(example(name, sentence="_ ate."))
        if name == "sst2":
            rows.append(example(name, sentence="short", label=0))
        batch = asked.collate([asked.encode(row) for row in rows])
        expected = torch.tensor(
            [[independent(model, tokenizer, fill(task.causal.template, r), fill(o, r)) for o in task.causal.options] for r in rows]
        )
        scores = asked.scores(model, batch)
        assert scores.dtype == torch.float32 and scores.shape == (len(rows), len(task.labels))
        torch.testing.assert_close(scores, expected.float(), rtol=1e-5, atol=1e-5)
        loss = -expected.double().log_softmax(-1)[range(len(rows)), [row.label for row in rows]].mean()
        assert asked.loss(model, batch).item() == pytest.approx(loss.item(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("adapter", ["lora", "prefix", "prompt"])
@pytest.mark.parametrize("kind", ["opt", "llama"])
@torch.no_grad()
def test_causal_scores_below_an_adapter(models, adapters, bpe, kind, adapter):
    plain = models(kind, len(bpe))
    asked = reader(tasks.get("copa"), "causal", bpe)
    rows = [example("copa"), example("copa", premise="A man. He fell and fell.")]
    batch = asked.collate([asked.encode(row) for row in rows])
    before = asked.scores(plain, batch)
    model = adapters(plain, adapter)
    virtual = 3 if adapter == "prompt" else 0
    task = tasks.get("copa")
    expected = [[independent(model, bpe, fill(task.causal.template, r), fill(o, r), virtual) for o in task.causal.options] for r in rows]
    scores = asked.scores(model, batch)
    torch.testing.assert_close(scores, torch.tensor(expected).float(), rtol=1e-5, atol=1e-5)
    assert (scores - before).abs().max() > 1e-3  # the adapter matters


def test_options_of_one_token_share_a_sequence(bpe):
    asked = reader(tasks.get("sst2"), "causal", bpe)
    batch = asked.collate([asked.encode(example("sst2"))] * 2)
    assert batch["input_ids"].shape[0] == 2 and batch["where"].shape == (2, 4)
    assert bpe.decode(batch["input_ids"][0]) == "</s>a warm , funny film It was"
    assert bpe.convert_ids_to_tokens(batch["targets"].tolist()) == ["Ġterrible", "Ġgreat"] * 2
    copa = reader(tasks.get("copa"), "causal", bpe)
    assert copa.collate([copa.encode(example("copa"))])["input_ids"].shape[0] == 2


@torch.no_grad()
def test_rows_with_fewer_candidates(models, bpe):
    asked = reader(tasks.get("mnli"), "causal", bpe)
    features = [asked.encode(example("mnli")) for _ in range(2)]
    features[1]["candidates"] = features[1]["candidates"][:2]
    model = models("opt", len(bpe))
    scores = asked.scores(model, asked.collate(features))
    assert scores[1, 2] == -torch.inf and scores[1, :2].equal(scores[0, :2])
    loss = asked.loss(model, asked.collate(features))
    expected = -(scores[0].log_softmax(-1)[0] + scores[1, :2].log_softmax(-1)[0]) / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


@torch.no_grad()
def test_the_loss_of_the_right_option_alone(models, bpe):
    model, task = models("llama", len(bpe)), tasks.get("copa")
    asked = reader(task, "causal", bpe, objective="option")
    rows = [example("copa"), example("copa", label=1)]
    options = [("The man fell because ", "the ice was thin."), ("The man fell because ", "I sang.")]
    means = [independent(model, bpe, *pair) for pair in options]
    lengths = [len(bpe(a + b)["input_ids"]) - len(bpe(a.strip())["input_ids"]) for a, b in options]
    assert lengths[0] != lengths[1]  # the mean goes over tokens, not rows
    expected = -sum(m * n for m, n in zip(means, lengths)) / sum(lengths)
    batch = asked.collate([asked.encode(row) for row in rows])
    assert asked.loss(model, batch).item() == pytest.approx(expected, rel=1e-5)
    assert batch["right_input_ids"].shape[0] == 2 and asked.scores(model, batch).shape == (2, 2)


@torch.no_grad()
def test_a_classification_head(bert):
    import transformers

    small = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    names = {0: "contradiction", 1: "neutral", 2: "entailment"}
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(bert), id2label=names, label2id={v: k for k, v in names.items()}, **small)
    model = transformers.BertForSequenceClassification(config).eval()
    asked = reader(tasks.get("mnli"), "head", bert)
    rows = [example("mnli"), example("mnli", premise="The cat slept all day and all night.", label=2)]
    batch = asked.collate([asked.encode(row) for row in rows])
    expected = torch.cat([model(**bert(row["premise"], row["hypothesis"], return_tensors="pt")).logits for row in rows])
    torch.testing.assert_close(asked.scores(model, batch), expected[:, [2, 1, 0]], rtol=1e-5, atol=1e-6)  # in the task's order
    assert asked.loss(model, batch).item() == pytest.approx(
        torch.nn.functional.cross_entropy(expected[:, [2, 1, 0]], torch.tensor([0, 2])).item()
    )
    model.config.id2label = {i: f"LABEL_{i}" for i in range(3)}
    torch.testing.assert_close(asked.scores(model, batch), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(BadInput, match=r"gives \(1, 3\) logits for 1 rows: pass .* num_labels=2 for 'sst2'"):
        asked = reader(tasks.get("sst2"), "head", bert)
        asked.scores(model, asked.collate([asked.encode(example("sst2"))]))


def test_a_masked_prompt_is_shortened_in_its_text_alone(bert):
    long = "word " * 40
    asked = reader(tasks.get("mnli"), "masked", bert, max_length=24)
    feature = asked.encode(example("mnli", premise=long, hypothesis="Short one."))
    text = bert.decode(feature["tokens"]["input_ids"])
    assert len(feature["tokens"]["input_ids"]) == 24 and text.endswith("? [MASK], short one. [SEP]") and "word word" in text
    both = asked.encode(example("mnli", premise=long, hypothesis=long))
    text = bert.decode(both["tokens"]["input_ids"])
    first, second = text.removeprefix("[CLS]").removesuffix("[SEP]").split("? [MASK],")
    assert first.split() == second.split() and 22 <= len(both["tokens"]["input_ids"]) <= 24
    with pytest.raises(BadInput, match="row 1: max_length=4 is less than the template alone: pass 5 or more"):
        reader(tasks.get("mnli"), "masked", bert, max_length=4).encode(example("mnli"))


def test_a_causal_prompt_is_shortened_at_its_beginning(bpe, bare_bpe):
    for tokenizer in (bpe, bare_bpe):
        asked = reader(tasks.get("copa"), "causal", tokenizer, max_length=16)
        for ids, option in asked.encode(example("copa", premise="So it went. " * 30))["candidates"]:
            assert len(ids) == 15 and (ids[0] == 1) == (tokenizer is bpe)
            text = tokenizer.decode([*ids, option[-1]])
            assert text.endswith(("because the ice was thin.", "because I sang."))
    with pytest.raises(BadInput, match="row 1: an option has .* tokens, too many for max_length=4"):
        reader(tasks.get("copa"), "causal", bpe, max_length=4).encode(example("copa"))


def test_what_cannot_be_asked_is_named(bert, bpe, bare_bpe):
    sst2, squad = tasks.get("sst2"), tasks.get("squad")

    def refused(message, task, kind, tokenizer, **options):
        with pytest.raises(BadInput, match=message) as error:
            reader(task, kind, tokenizer, **options)
        assert "\n" not in str(error.value)

    refused("reader 'seq2seq' is not known: pass one of masked, causal, head", sst2, "seq2seq", bert)
    words = Prompt("{sentence} {option}", ("terrible", "zokernish"))
    refused(
        r"option 'zokernish' of 'sst2' is not one token, but \['z', '##oke', '##rn', '##ish'\]: pass a prompt",
        sst2,
        "masked",
        bert,
        prompt=words,
    )
    refused("option 'ᚠ' of 'sst2' is not one token", sst2, "masked", bert, prompt=Prompt("{sentence} {option}", ("ᚠ", "a")))
    refused(
        "'Great' of 'sst2' is the same token as another", sst2, "masked", bert, prompt=Prompt("{sentence} {option}", ("great", "Great"))
    )
    refused("task 'squad' has no prompt for 'masked' models", squad, "masked", bert)
    refused("task 'squad' has no prompt for 'head' models", squad, "head", bert)
    refused("has to end with {option}", sst2, "causal", bpe, prompt=Prompt("{option} {sentence}", ("a", "b")))
    refused("objective 'hinge' is not known", sst2, "causal", bpe, objective="hinge")
    refused("objective 'option' needs options of several tokens", sst2, "masked", bert, objective="option")
    refused("objective 'accuracy' does not fit 'squad'", squad, "causal", bpe, objective="accuracy")
    refused("objective 'f1' does not fit 'sst2', which is judged by accuracy", sst2, "causal", bpe, objective="f1")
    refused("max_length=0", sst2, "causal", bpe, max_length=0)
    refused("max_new_tokens=50 leaves no room in max_length=50", squad, "causal", bpe, max_length=50)
    bare_bpe = type(bare_bpe)(tokenizer_object=bare_bpe.backend_tokenizer)
    refused("has no mask token", sst2, "masked", bare_bpe)
    with pytest.raises(BadInput, match="row 1: nothing stands before the option"):
        reader(tasks.get("winogrande"), "causal", bare_bpe).encode(example("winogrande", sentence="_ ate."))


def test_rows_that_cannot_be_asked_are_named(bert, bpe):
    with pytest.raises(BadInput, match=r"row 1: the text holds '\[MASK\]'"):
        reader(tasks.get("sst2"), "masked", bert).encode(example("sst2", sentence="a [MASK] film"))
    with pytest.raises(BadInput, match="row 1, column 'question': 'why' is neither 'cause' nor 'effect'"):
        reader(tasks.get("copa"), "causal", bpe).encode(example("copa", question="why"))
    with pytest.raises(BadInput, match="row 1, column 'sentence': the sentence has 2 gaps"):
        reader(tasks.get("winogrande"), "causal", bpe).encode(example("winogrande", sentence="_ and _"))
    with pytest.raises(BadInput, match="row 1: an option is empty"):
        reader(tasks.get("copa"), "causal", bpe).encode(example("copa", choice1=" "))


@torch.no_grad()
def test_rows_without_labels_have_predictions_but_no_loss(models, bert, bpe):
    for kind, tokenizer, model in (("masked", bert, models("bert", len(bert))), ("causal", bpe, models("opt", len(bpe)))):
        asked = reader(tasks.get("sst2"), kind, tokenizer)
        unknown = Example(CASES["sst2"].row, None, "row 2")
        batch = asked.collate([asked.encode(row) for row in (example("sst2"), unknown)])
        assert len(asked.predictions(model, batch)) == 2
        with pytest.raises(BadInput, match="a row of this batch has no label"):
            asked.loss(model, batch)
