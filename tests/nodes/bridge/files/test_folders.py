"""What the loaders' menus offer."""
import os
from pathlib import PureWindowsPath

import pytest
import torch
from safetensors.torch import save_file


@pytest.fixture
def folders(comfyui, tmp_path, monkeypatch):
    """The bridge's folders over an empty set of model folders below tmp_path."""
    import folder_paths

    from qwen_image_2.nodes.bridge.files import folders
    extensions = folder_paths.supported_pt_extensions
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {
        "diffusion_models": ([str(tmp_path / "unet"), str(tmp_path / "diffusion_models")], extensions),
        "text_encoders": ([str(tmp_path / "text_encoders")], extensions),
        "vae": ([str(tmp_path / "vae")], extensions),
        "diffusers": ([str(tmp_path / "diffusers")], {"folder"}),
    })
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return folders


def add(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            save_file({"a": torch.zeros(1)}, path)
        else:
            path.write_text("{}")


def pipeline(root):
    add(root, "transformer/config.json", "transformer/model-00001-of-00002.safetensors",
        "transformer/model-00002-of-00002.safetensors", "transformer/model.safetensors.index.json",
        "text_encoder/config.json", "text_encoder/model.safetensors",
        "vae/config.json", "vae/diffusion_pytorch_model.safetensors")


def test_files_of_all_folders_are_offered(folders, tmp_path):
    add(tmp_path / "diffusion_models", "a.safetensors", "sub/b.safetensors", "c.ckpt")
    add(tmp_path / "unet", "d.safetensors")
    *files, built_in = folders.choices(folders.TRANSFORMER)
    assert set(files) == {"a.safetensors", "sub/b.safetensors", "d.safetensors"}
    assert built_in == "miniature"
    assert folders.resolve(folders.TRANSFORMER, "d.safetensors") == tmp_path / "unet" / "d.safetensors"


def test_whole_checkpoints_are_offered_for_every_part(folders, tmp_path, monkeypatch):
    """Those of the models folder and what core has saved."""
    import folder_paths
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    folder_paths.folder_names_and_paths["checkpoints"] = (
        [str(tmp_path / "checkpoints"), str(tmp_path / "output" / "checkpoints")], {".safetensors", ".ckpt"})
    add(tmp_path / "checkpoints", "rapid/AIO.safetensors", "old.ckpt")
    add(tmp_path / "output" / "checkpoints", "ComfyUI_00001_.safetensors", "sub/mine.safetensors", "old.ckpt")
    add(tmp_path / "vae" / "checkpoints", "sub/mine.safetensors")
    places = {"ComfyUI_00001_.safetensors": tmp_path / "output", "rapid/AIO.safetensors": tmp_path,
              "sub/mine.safetensors": tmp_path / "output"}
    names = [f"checkpoints/{name}" for name in places]
    for part in (folders.TRANSFORMER, folders.TEXT_ENCODER):
        assert folders.choices(part) == [*names, "miniature"]
        assert [folders.resolve(part, name) for name in names] == [
            place / name for name, place in zip(names, places.values(), strict=True)]
    assert folders.stamp(folders.TRANSFORMER, names[0])[0][0] == "ComfyUI_00001_.safetensors"
    assert folders.choices(folders.VAE).count(names[2]) == 1
    assert folders.resolve(folders.VAE, names[2]) == tmp_path / "vae" / names[2]
    (tmp_path / "output" / names[0]).unlink()
    folder_paths.filename_list_cache.clear()
    with pytest.raises(FileNotFoundError):
        folders.resolve(folders.TRANSFORMER, names[0])


def test_what_a_killed_save_leaves_is_not_offered(folders, tmp_path):
    add(tmp_path / "diffusion_models", "int8_00001_.safetensors.k3j2.part", "a.safetensors")
    assert folders.choices(folders.TRANSFORMER) == ["a.safetensors", "miniature"]


def test_gguf_text_encoders_and_their_projectors_are_told_apart(folders, tmp_path):
    add(tmp_path / "text_encoders", "Qwen3VL-8B-Instruct-Q8_0.gguf", "mmproj-F16.gguf",
        "sub/Qwen3-VL-8B-Instruct.mmproj-Q8_0.gguf", "mmproj.safetensors")
    assert folders.choices(folders.TEXT_ENCODER) == ["mmproj.safetensors", "Qwen3VL-8B-Instruct-Q8_0.gguf", "miniature"]
    assert set(folders.projectors()) == {"mmproj-F16.gguf", "sub/Qwen3-VL-8B-Instruct.mmproj-Q8_0.gguf"}
    path = folders.resolve(folders.TEXT_ENCODER, "mmproj-F16.gguf")
    assert path == tmp_path / "text_encoders" / "mmproj-F16.gguf"


def test_a_pipeline_below_the_model_folder_is_one_choice(folders, tmp_path):
    pipeline(tmp_path / "diffusion_models" / "Qwen-Image-2.1")
    assert folders.choices(folders.TRANSFORMER) == ["Qwen-Image-2.1/transformer/", "miniature"]
    path = folders.resolve(folders.TRANSFORMER, "Qwen-Image-2.1/transformer/")
    assert path == tmp_path / "diffusion_models" / "Qwen-Image-2.1" / "transformer"


def test_a_pipeline_in_the_diffusers_folder_serves_all_parts(folders, tmp_path):
    pipeline(tmp_path / "diffusers" / "Qwen-Image-2.1")
    for part, subfolder in ((folders.TRANSFORMER, "transformer"), (folders.TEXT_ENCODER, "text_encoder"),
                            (folders.VAE, "vae")):
        assert folders.choices(part) == [f"Qwen-Image-2.1/{subfolder}/", "miniature"]
        assert folders.resolve(part, f"Qwen-Image-2.1/{subfolder}/").name == subfolder


def test_gguf_files_of_a_pipeline(folders, tmp_path):
    """Of another part: no choice. Beside the own files of a folder: one, for the folder stands for those alone."""
    root = tmp_path / "diffusion_models" / "Qwen-Image-2.1"
    pipeline(root)
    add(root, "transformer/q8.gguf", "text_encoder/q8.gguf")
    assert folders.choices(folders.TRANSFORMER) == ["Qwen-Image-2.1/transformer/q8.gguf", "Qwen-Image-2.1/transformer/",
                                                    "miniature"]


def test_a_folder_of_unrelated_files_stays_files(folders, tmp_path):
    add(tmp_path / "vae" / "mine", "a.safetensors", "b.safetensors", "config.json")
    assert set(folders.choices(folders.VAE)) == {"mine/a.safetensors", "mine/b.safetensors", "miniature"}


def test_shards_without_index_are_one_choice(folders, tmp_path):
    add(tmp_path / "text_encoders" / "q", "m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors",
        "config.json")
    assert folders.choices(folders.TEXT_ENCODER) == ["q/", "miniature"]


def test_a_vanished_folder_is_said(folders, tmp_path):
    with pytest.raises(folders.FolderGone, match="gone/ no longer exists"):
        folders.resolve(folders.VAE, "gone/")


@pytest.fixture
def windows(folders, monkeypatch):
    """ComfyUI's file lists as on Windows: it joins their names with backslashes, and takes such names."""
    import folder_paths

    from qwen_image_2.nodes.bridge import loading
    from qwen_image_2.nodes.bridge.files import system_prompts
    for module in (folders, loading, system_prompts):
        monkeypatch.setattr(module, "PurePath", PureWindowsPath)
    for name in ("get_full_path", "get_full_path_or_raise"):
        real = getattr(folder_paths, name)
        monkeypatch.setattr(folder_paths, name, lambda kind, name, real=real: real(kind, name.replace("\\", "/")))
    listed = folder_paths.get_filename_list
    monkeypatch.setattr(folder_paths, "get_filename_list",
                        lambda kind: [name.replace("/", "\\") for name in listed(kind)])
    return folders


def test_names_of_windows(windows, tmp_path):
    """Files keep the names that core's loaders have for them; folders have ours, with slashes, everywhere."""
    from qwen_image_2.nodes.bridge import loading
    pipeline(tmp_path / "diffusion_models" / "Qwen" / "Image-2.1")
    add(tmp_path / "diffusion_models", "mine/turbo/a.safetensors", "mine/b.gguf")
    found = windows.choices(windows.TRANSFORMER)
    assert set(found) == {"mine\\turbo\\a.safetensors", "mine\\b.gguf", "Qwen/Image-2.1/transformer/", "miniature"}
    for name in found[:-1]:
        expected = tmp_path / "diffusion_models" / name.replace("\\", "/")
        assert windows.resolve(windows.TRANSFORMER, name) == expected
    assert [name for name in found if loading.variant_of(name, "auto") == "turbo"] == ["mine\\turbo\\a.safetensors"]


def test_system_prompts_of_windows(windows, tmp_path):
    from qwen_image_2.nodes.bridge.files import system_prompts
    add(tmp_path / "text_encoders", "PE/own/system_prompt.txt", "PE/own/merges.txt")
    assert "PE/own/system_prompt.txt" in system_prompts.choices()
    assert not any("merges" in name for name in system_prompts.choices())
    assert system_prompts.resolve("PE/own/system_prompt.txt") == (
        tmp_path / "text_encoders" / "PE" / "own" / "system_prompt.txt")


def test_another_file_of_the_same_name_has_another_stamp(folders, tmp_path):
    """Or ComfyUI would go on with the weights that it has."""
    add(tmp_path / "vae", "a.safetensors", "folder/vae/config.json", "folder/vae/model.safetensors")
    for name, file in (("a.safetensors", "a.safetensors"), ("folder/vae/", "folder/vae/model.safetensors")):
        before = folders.stamp(folders.VAE, name)
        assert before == folders.stamp(folders.VAE, name) != []
        save_file({"a": torch.zeros(1000)}, tmp_path / "vae" / file)
        assert folders.stamp(folders.VAE, name) != before
    assert folders.stamp(folders.VAE, "gone.safetensors") == folders.stamp(folders.VAE, None) == []


def test_only_regular_files_are_offered(folders, tmp_path, monkeypatch):
    """A named pipe among the models would be waited for without end."""
    import folder_paths

    from qwen_image_2.nodes.bridge.files import fonts, system_prompts
    from qwen_image_2.nodes.bridge.text_encoders.families import projectors_beside
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras",
                        ([str(tmp_path / "loras")], folder_paths.supported_pt_extensions))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "fonts", ([str(tmp_path / "fonts")], {".ttf"}))
    add(tmp_path, "text_encoders/a.gguf", "text_encoders/prompt.txt", "vae/a.safetensors", "vae/one/config.json",
        "vae/two/config.json", "vae/two/model.safetensors", "loras/a.safetensors", "fonts/a.ttf",
        "diffusers/whole/vae/config.json")
    for name in ("text_encoders/pipe.gguf", "text_encoders/mmproj-pipe.gguf", "text_encoders/pipe.txt",
                 "vae/pipe.safetensors", "vae/one/model.safetensors", "vae/two/pipe.safetensors",
                 "loras/pipe.safetensors", "fonts/pipe.ttf", "diffusers/whole/vae/model.safetensors"):
        os.mkfifo(tmp_path / name)
    assert folders.choices(folders.VAE) == ["a.safetensors", "two/", "miniature"]
    assert folders.choices(folders.TEXT_ENCODER) == ["a.gguf", "miniature"] and not folders.projectors()
    assert not projectors_beside(tmp_path / "text_encoders" / "a.gguf")
    assert [name for name in system_prompts.choices() if "/" not in name] == ["built-in", "prompt.txt"]
    assert folders.file_names("loras") == ["a.safetensors"]
    assert "a.ttf" in fonts.choices() and "pipe.ttf" not in fonts.choices()
    with pytest.raises(FileNotFoundError):
        folders.resolve(folders.VAE, "pipe.safetensors")
    with pytest.raises(ValueError, match="The system prompt pipe.txt is not below"):
        system_prompts.resolve("pipe.txt")


def test_the_loader_of_loras_offers_regular_files_only(folders, tmp_path, monkeypatch):
    import folder_paths

    from qwen_image_2.nodes.loras import QwenImage2LoadLoRA
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras",
                        ([str(tmp_path / "loras")], folder_paths.supported_pt_extensions))
    add(tmp_path, "loras/a.safetensors")
    os.mkfifo(tmp_path / "loras" / "pipe.safetensors")
    lora = next(each for each in QwenImage2LoadLoRA.define_schema().inputs if each.id == "lora")
    assert lora.options == ["a.safetensors"]
