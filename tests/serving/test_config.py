from __future__ import annotations

from dataclasses import fields

import pytest

import command_line
from tianquan.errors import ParameterError
from tianquan.serving.config import ServeConfig, default_model_name, make_config


def write(tmp_path, text):
    path = tmp_path / "serve.toml"
    path.write_text(text)
    return path


def test_flags_come_before_the_file_and_the_file_before_defaults(tmp_path):
    file = write(
        tmp_path,
        'model = "a/b"\nport = 9000\nmax-queue = 3\nallow-media-domain = ["x.example"]\nspeculation = false\n'
        'media_root = "/srv"\nmax_audio_seconds = 60\nkv-cache-bytes = "2G"\n',
    )
    config = make_config({"port": 1234, "max_queue": None, "host": None, "allowed_host": []}, file)
    assert (config.port, config.max_queue, config.host) == (1234, 3, "127.0.0.1")
    assert config.allow_media_domain == ("x.example",)
    assert str(config.media_root) == "/srv"
    assert config.model_name == "a/b"
    assert not config.speculation


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("prot = 1", "prot"),
        ("port = '1'", "port"),
        ("port = true", "port"),
        ("port = 70000", "port"),
        ("insecure = 1", "insecure"),
        ("allow_media_domain = 'x'", "allow_media_domain"),
        ("allow_media_domain = [1]", "allow_media_domain"),
        ("backend = 'magic'", "backend"),
        ("long_audio = 'louder'", "long_audio"),
        ("max_num_seqs = 0", "max_num_seqs"),
        ("adapter = 'x'", "adapter"),
        ("adapter = ['x']", "adapter"),
        ("port = ", "TOML"),
        ("[patience]\nhead = 1", "patience"),
    ],
)
def test_bad_files_are_one_line(tmp_path, text, word):
    with pytest.raises(ParameterError, match=word) as caught:
        make_config({}, write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_values_out_of_range_and_missing_files(tmp_path):
    with pytest.raises(ParameterError, match="max_queue"):
        make_config({"max_queue": -1})
    with pytest.raises(ParameterError, match="cannot be read"):
        make_config({}, tmp_path / "none")


def test_every_flag_is_an_option_of_the_file_and_the_other_way():
    import inspect

    from tianquan.cli.serve import serve

    flags = set(inspect.signature(serve).parameters) - {"config"}
    assert flags == {field.name for field in fields(ServeConfig)} - {"patience", "media_threads", "max_connections"}


def test_names_of_models(tmp_path):
    assert ServeConfig().model_name == "embedded"
    assert default_model_name("owner/name@main") == "owner/name"
    assert default_model_name(str(tmp_path / "some" / "folder")) == "folder"
    assert ServeConfig(model="x", adapter=("mine=/some/folder",)).model_name == "x"
    assert ServeConfig(model="x", served_model_name="y").model_name == "y"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["{model}", "--host", "0.0.0.0"], "--api-key-file"),
        (["{model}", "--api-key-file", "/nowhere/key"], "key file"),
        (["/nowhere/model", "--port", "0"], "model"),
        (["{model}", "--port", "99999"], "port"),
    ],
)
def test_the_command_refuses_in_one_line(checkpoint_folder, arguments, word):
    arguments = [argument.format(model=checkpoint_folder) for argument in arguments]
    result = command_line.run("serve", *arguments)
    assert result.returncode == 2, result
    assert word in result.stderr
    assert "Traceback" not in result.stderr


def test_sizes_are_numbers_or_texts(tmp_path):
    file = write(tmp_path, 'max_body_bytes = "8M"\nencoder_cache_bytes = 1000\n')
    config = make_config({"max_media_bytes": "2K"}, file)
    assert (config.max_body_bytes, config.encoder_cache_bytes, config.max_media_bytes) == (8 * 2**20, 1000, 2048)
    with pytest.raises(ParameterError, match="max_body_bytes: 'big' is no size"):
        make_config({"max_body_bytes": "big"})
    with pytest.raises(ParameterError, match="expected a size such as 64M"):
        make_config({}, write(tmp_path, "max_body_bytes = true"))
