"""Run the conformance cases through a vLLM of its own process: `engine_process.py ENGINE_JSON RESULT_FILE`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

CONFORMANCE = Path(__file__).parents[1] / "conformance"


def run(options: dict) -> dict[str, dict[str, list[int]]]:
    from vllm import LLM, SamplingParams

    from vllm_plugin.conftest import openai_messages

    paths = sorted((CONFORMANCE / "cases").glob("*.json"))
    cases = {path.stem: json.loads(path.read_text()) for path in paths}
    llm = LLM(str(CONFORMANCE / "checkpoint"), **options)
    messages = [openai_messages(case["messages"], CONFORMANCE / "media") for case in cases.values()]
    outputs = llm.chat(messages, SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True), use_tqdm=False)
    return {
        name: {"prompt": list(output.prompt_token_ids), "answer": list(output.outputs[0].token_ids)}
        for name, output in zip(cases, outputs, strict=True)
    }


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    # Not to stdout: vLLM's processes log there until the last of them is gone.
    Path(sys.argv[2]).write_text(json.dumps(run(json.loads(sys.argv[1]))))
