"""Whether the hub answers is asked once, and not waited for."""

import socket
import threading

import pytest
from huggingface_hub import constants

from selfprune.checkpoints import source as checkpoint_source
from selfprune.data.data_config import DataConfig, Source
from selfprune.data.splits import check_texts
from selfprune.errors import DataError, ModelError
from selfprune.evaluators.harness import Harness
from selfprune.evaluators.harness_config import HarnessConfig
from selfprune.models.loading import load_model, preflight_memory
from selfprune.models.model_config import ModelConfig


def test_the_hub_is_asked_once_in_a_process_however_much_of_a_sweep_lies_there(no_network, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    (tmp_path / "far.yaml").write_text(
        "task: far\ndataset_path: nobody/nothing\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: a\ndoc_to_choice: b\ndoc_to_target: c\n"
    )
    for _ in range(2):
        with pytest.raises(DataError, match="lies on the hub, which does not answer"):
            check_texts(DataConfig(Source.HUB, "c4", "c4", "c4"))
        for load in (preflight_memory, load_model):
            with pytest.raises(ModelError, match="the hub does not answer"):
                load(ModelConfig("someone/no-such-model"))
        with pytest.raises(DataError, match="'far' must come from the Hugging Face hub or its cache"):
            Harness(HarnessConfig(["far"], [], include_path=str(tmp_path)))
    assert len(no_network) == 1


def test_a_name_server_that_keeps_silent_is_waited_for_as_long_as_the_hub_itself(no_network, monkeypatch):
    silence, asked = threading.Event(), threading.Event()

    def wait(*_: object, **__: object) -> None:
        asked.set()
        silence.wait()
        raise OSError("no network in this test")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", wait)
    monkeypatch.setattr(checkpoint_source, "ANSWER_SECONDS", 0.1)
    try:
        assert not checkpoint_source.hub_is_reachable()
        assert asked.wait(30)
    finally:
        silence.set()


def test_nobody_is_asked_where_the_hub_is_switched_off(no_network, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not checkpoint_source.hub_is_reachable()
    assert not no_network
