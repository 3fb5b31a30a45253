"""Completions beside a plain loop: one prompt, no cache, the whole text again for every token."""

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from streamed_cases import TERMS, layout_of, perturbed

import zokern
from zokern.estimators import InPlace
from zokern.evolve import BadInput, Completions, Generator, Row
from zokern.evolve.prompts import encode
from zokern.hf import adapt

TEXTS = {
    "one": ["You may reproduce and distribute copies"],
    "equal": ["abcdef", "ghijkl", "mnopqr"],
    "very different": [
        "x",
        "You may add Your own copyright statement to Your modifications and may provide additional terms " * 2,
        "the Work",
    ],
    "many": [f"{'notice ' * (i % 5)}{i}" for i in range(11)],
}


def prompts(tokenizer, texts):
    return encode([Row(text, {}, "here") for text in texts], tokenizer, 1, None)


@torch.no_grad()
def plain(model, tokenizer, prompts, new, ends=(2,), draw=None, stops=()):
    """What Generator should write; draw: (temperature, seed)."""
    texts, count = [], 0
    uniforms = np.random.default_rng(draw[1]).random((len(prompts), new)) if draw else None
    for row, prompt in enumerate(prompts):
        made = []
        text = ""
        while len(made) < new and not (made and made[-1] in ends) and not any(stop in text for stop in stops):
            logits = model(torch.tensor([prompt + made])).logits[0, -1].double().numpy()
            if draw:
                shares = np.exp((logits - logits.max()) / draw[0]).cumsum()
                made.append(int(np.searchsorted(shares, uniforms[row, len(made)] * shares[-1], side="right")))
            else:
                made.append(int(logits.argmax()))
            text = tokenizer.decode(made, skip_special_tokens=True)
        texts.append(min((text.partition(stop)[0] for stop in stops), key=len, default=text))
        count += len(made)
    return Completions(texts, count)


@pytest.mark.parametrize("draw", [None, (0.7, 5)], ids=["greedy", "drawn"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("texts", TEXTS.values(), ids=TEXTS)
def test_the_texts_are_those_of_a_plain_loop(model, tokenizer, texts, cache, draw):
    ids = prompts(tokenizer, texts)
    expected = plain(model, tokenizer, ids, 9, draw=draw)
    options = dict(temperature=draw[0]) if draw else {}
    for batch_size in (64, 2):
        made = Generator(model, tokenizer, 9, batch_size, cache=cache, **options)(ids, draw and draw[1])
        assert made == expected
    assert len(set(expected.texts)) == len(texts)  # and not all the same


def test_positions_that_are_learned_and_a_tokenizer_with_a_padding_token(tokenizer_of, model_of):
    tokenizer = tokenizer_of("<s> $A", bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    model, ids = model_of("OPT"), prompts(tokenizer, TEXTS["many"])
    assert Generator(model, tokenizer, 6, 4)(ids) == plain(model, tokenizer, ids, 6)


def test_bfloat16(model_of, tokenizer):
    """One prompt at a time: sums of other shapes round otherwise, and in bfloat16 two tokens are often as likely."""
    model, ids = model_of(dtype=torch.bfloat16), prompts(tokenizer, TEXTS["many"])
    made = Generator(model, tokenizer, 6, batch_size=1)(ids)
    alike = [a == b for a, b in zip(made.texts, plain(model, tokenizer, ids, 6).texts)]
    assert sum(alike) >= 9  # the loop has no cache, so that its sums, too, have other shapes


def test_chat_messages(model, tokenizer):
    rows = [Row([{"role": "user", "content": content}], {}, "here") for content in ("Hi", "What is a Contribution?")]
    ids = encode(rows, tokenizer, 6, None)
    assert ids[0] == tokenizer("<s>user: Hi</s><s>assistant: ", add_special_tokens=False)["input_ids"]
    assert Generator(model, tokenizer, 6)(ids) == plain(model, tokenizer, ids, 6)


def test_the_end_of_a_text_may_be_its_first_token_and_is_counted(model, tokenizer):
    ids = prompts(tokenizer, TEXTS["many"])
    first = [int(model(torch.tensor([prompt])).logits[0, -1].argmax()) for prompt in ids[:3]]
    model.generation_config.eos_token_id = first[:1] + first[2:]  # a list, as Llama 3 has
    expected = plain(model, tokenizer, ids, 7, ends=(2, first[0], first[2]))
    made = Generator(model, tokenizer, 7, 4)(ids)
    assert made == expected and made.tokens < 7 * len(ids)
    model.generation_config.eos_token_id = first[1]
    made = Generator(model, tokenizer, 7)(ids[1:2])
    assert made.tokens == 1 and made.texts == [tokenizer.decode([first[1]], skip_special_tokens=True)]


def test_defaults_of_the_model_do_not_count_and_stay(model, tokenizer):
    ids = prompts(tokenizer, TEXTS["many"])
    expected = plain(model, tokenizer, ids, 8)
    theirs = model.generation_config
    for name, value in dict(do_sample=True, temperature=3.0, top_k=2, repetition_penalty=9.0, min_new_tokens=8, num_beams=3).items():
        setattr(theirs, name, value)
    theirs.suppress_tokens, theirs.max_length = list(range(3, 200)), 3
    before = theirs.to_dict()
    generate = Generator(model, tokenizer, 8)
    assert generate(ids) == expected
    with pytest.raises(IndexError):
        generate([[10**6]])  # no such token
    assert model.generation_config is theirs and theirs.to_dict() == before


def test_a_drawn_text_depends_on_its_seed_alone(model, tokenizer):
    ids = prompts(tokenizer, TEXTS["many"])
    generate = Generator(model, tokenizer, 8, temperature=1.0)
    state = torch.random.get_rng_state()
    first = generate(ids, 2**63)
    assert generate(ids, 2**63 + 1).texts != first.texts
    torch.rand(1)
    assert generate(ids, 2**63) == first
    assert generate(ids[:5], 2**63).texts == first.texts[:5]
    torch.random.set_rng_state(state)
    generate(ids, 1)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_tokens_are_drawn_as_often_as_the_model_says(model, tokenizer):
    """The first token of 4000 equal prompts; false alarms: 1e-6, for other seeds than this one."""
    ids, count, temperature = prompts(tokenizer, ["Work"]), 4000, 2.0
    chance = torch.softmax(model(torch.tensor(ids)).logits[0, -1].double() / temperature, -1).detach().numpy()
    names = [tokenizer.decode([i]) for i in range(len(chance))]
    texts = Generator(model, tokenizer, 1, 500, temperature=temperature)(ids * count, 0).texts
    often = [i for i in range(len(chance)) if chance[i] * count >= 10 and names.count(names[i]) == 1]
    expected = chance[often] * count
    found = np.array([texts.count(names[i]) for i in often])
    others = (count - found.sum() - (count - expected.sum())) ** 2 / (count - expected.sum())
    assert len(often) > 5 and ((found - expected) ** 2 / expected).sum() + others < chi2.ppf(1 - 1e-6, len(often))


def test_weights_that_change_in_place_are_seen(model, tokenizer):
    ids, seen = prompts(tokenizer, TEXTS["many"]), []
    for cache in ("dynamic", "static"):
        generate = Generator(model, tokenizer, 6, cache=cache)
        for _ in range(3):
            with torch.no_grad():
                for p in model.parameters():
                    p.mul_(-0.9)
            seen.append(generate(ids).texts)
            assert seen[-1] == plain(model, tokenizer, ids, 6).texts
    assert all(a != b for a, b in zip(seen, seen[1:]))
    assert not any(p.is_inference() for p in model.parameters())


@pytest.mark.parametrize("kind", ["in place", "copied", "streamed"])
def test_the_model_at_a_point_of_any_kind(model, tokenizer, kind):
    ids, layout = prompts(tokenizer, TEXTS["many"]), layout_of(model)
    expected = plain(perturbed(model, layout), tokenizer, ids, 6)
    weights = {
        "in place": lambda: InPlace(layout),
        "copied": lambda: zokern.Copied().weights(layout, {p: {} for p in layout.params}),
        "streamed": lambda: zokern.Streamed(model).weights(layout, {}),
    }[kind]()
    generate, before = Generator(model, tokenizer, 6), plain(model, tokenizer, ids, 6)
    assert before.texts != expected.texts
    for _ in range(2):
        with weights.at(TERMS):
            assert generate(ids) == expected
    weights.apply_pending()
    assert generate(ids) == before


@pytest.mark.parametrize("method", ["lora", "prefix", "prompt"])
def test_adapters(model, tokenizer, method):
    torch.manual_seed(1)
    adapted = adapt(model, method, **({} if method == "lora" else dict(num_virtual_tokens=3))).eval()
    for p in adapted.parameters():
        if p.requires_grad:
            p.data.normal_()
    ids = prompts(tokenizer, TEXTS["many"])
    generate = Generator(adapted, tokenizer, 6, 4)
    assert generate.positions == 128 - 3 * (method != "lora")
    made = generate(ids)
    assert made.texts == [generate([prompt]).texts[0] for prompt in ids]
    if method != "prefix":  # of which a plain call of the model does not know how to go without a cache
        assert made == plain(adapted, tokenizer, ids, 6)
    if method == "lora":
        assert Generator(adapted, tokenizer, 6, cache="static")(ids) == made
    else:
        with pytest.raises(BadInput, match="cache 'static' cannot hold the virtual tokens of peft's .*: pass 'dynamic'"):
            Generator(adapted, tokenizer, 6, cache="static")


@pytest.mark.parametrize("batch_size", [4, 64])
def test_a_stop_ends_a_text_and_is_left_out(model, tokenizer, batch_size):
    ids = prompts(tokenizer, TEXTS["many"])
    free = Generator(model, tokenizer, 12)(ids)
    long = next(
        text[2:8] for text in free.texts if text[2:8].isascii() and len(tokenizer(text[2:8], add_special_tokens=False)["input_ids"]) > 2
    )
    for stops in ([long], [free.texts[4][1:2], "no such text", long]):
        made = Generator(model, tokenizer, 12, batch_size, stops=stops)(ids)
        assert made == plain(model, tokenizer, ids, 12, stops=stops)
        assert made.texts != free.texts and len(ids) < made.tokens < free.tokens


def test_nan_weights_give_texts_all_the_same(model, tokenizer):
    """A member may be beyond all bounds: what it writes is worth nothing, and the run goes on."""
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    ids = prompts(tokenizer, TEXTS["many"])
    for temperature in (0.0, 1.0):
        assert len(Generator(model, tokenizer, 3, temperature=temperature)(ids, 0).texts) == len(ids)


def test_nothing_to_write(model, tokenizer):
    assert Generator(model, tokenizer, 3)([]) == Completions([], 0)


@pytest.mark.parametrize(
    "options, said",
    [
        (dict(max_new_tokens=0), "max_new_tokens 0: pass 1 or more"),
        (dict(batch_size=0), "batch_size 0: pass 1 or more"),
        (dict(temperature=-1.0), "temperature -1.0: pass 0"),
        (dict(temperature=float("nan")), "temperature nan"),
        (dict(cache="fast"), "cache 'fast': pass one of dynamic, static"),
        (dict(stops="\n"), "pass a list of texts"),
        (dict(stops=["a", ""]), "none of them empty"),
    ],
)
def test_arguments_that_cannot_be(model, tokenizer, options, said):
    with pytest.raises(BadInput, match=said):
        Generator(model, tokenizer, **{"max_new_tokens": 3, **options})


def test_models_that_cannot_be(model, tokenizer):
    with pytest.raises(BadInput, match="pass a seed"):
        Generator(model, tokenizer, 3, temperature=1.0)([[5]])
    generate = Generator(model, tokenizer, 3)
    model.train()
    with pytest.raises(BadInput, match=r"call model.eval\(\)"):
        generate([[5]])
    model.config.is_encoder_decoder = True
    with pytest.raises(BadInput, match="LlamaForCausalLM.*encoder and a decoder"):
        Generator(model, tokenizer, 3)
