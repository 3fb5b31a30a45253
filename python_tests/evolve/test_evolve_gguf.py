"""Evolution from a model in GGUF: made again bit for bit; chats need the file's template."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import equal

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")

import gguf_cases  # noqa: E402

from zokern.evolve import BadInput, evolve, resume  # noqa: E402
from zokern.evolve.restore import replay  # noqa: E402


def vowels(completions):
    return [sum(c in "aeiou" for c in text) / max(1, len(text)) for text in completions]


def brief(completions):
    return [-float(len(str(messages))) for messages in completions]


def run(settings, **more):
    return evolve(replace(settings, **more), lambda line: None, [vowels])


@pytest.mark.parametrize("given", [{}, dict(adapter=("lora",), dtype="bfloat16")], ids=["full", "lora"])
def test_a_run_is_made_again_and_goes_on(given, settings, tmp_path):
    file = tmp_path / "tiny.gguf"
    gguf_cases.write(file, gguf.GGMLQuantizationType.Q8_0)
    result = run(settings, model=str(file), steps=3, **given)
    assert result.before["reward"] != result.after["reward"]
    replay(settings.out, str(tmp_path / "again"))
    assert equal(settings.out, tmp_path / "again")
    resume(settings.out, lambda line: None, steps=5, rewards=[vowels])
    run(settings, model=str(file), steps=5, out=str(tmp_path / "straight"), **given)
    assert equal(settings.out, tmp_path / "straight")


def test_chats_need_a_template(settings, tmp_path):
    file, chats = tmp_path / "tiny.gguf", tmp_path / "chats.jsonl"
    chats.write_text("".join(json.dumps({"prompt": [{"role": "user", "content": f"{i}?"}]}) + "\n" for i in range(8)))
    gguf_cases.write(file)
    with pytest.raises(
        BadInput, match="these are chat messages, and the tokenizer has no template for them: pass an instruct model, or text"
    ):
        run(settings, model=str(file), data=str(chats))
    assert not Path(settings.out).exists()
    gguf_cases.write(file, template=gguf_cases.TEMPLATE)
    evolve(replace(settings, model=str(file), data=str(chats), steps=1), lambda line: None, [brief])
    assert transformers.AutoTokenizer.from_pretrained(settings.out).chat_template == gguf_cases.TEMPLATE
