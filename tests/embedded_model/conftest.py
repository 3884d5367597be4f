"""A small clip bank for the tests, and reasons to skip where fonts or eSpeak NG are missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from embedded_model.samples import SampleStream

from embedded_model import espeak, fonts, speech


@pytest.fixture(scope="session")
def fonts_installed() -> None:
    missing = fonts.missing_packages()
    if missing:
        pytest.skip(f"fonts missing, apt-get install {' '.join(missing)}")


@pytest.fixture(scope="session")
def bank_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not espeak.is_installed():
        pytest.skip("libespeak-ng missing, apt-get install espeak-ng")
    folder = tmp_path_factory.mktemp("bank")
    speech.build_bank(folder, clips_per_voice={"train": 10, "heldout": 40}, num_voices=1)
    return folder


@pytest.fixture(scope="session")
def train(fonts_installed: None, bank_folder: Path) -> SampleStream:
    return SampleStream("train", bank_folder=bank_folder, max_side=168)


@pytest.fixture(scope="session")
def heldout(fonts_installed: None, bank_folder: Path) -> SampleStream:
    return SampleStream("heldout", bank_folder=bank_folder, max_side=168)
