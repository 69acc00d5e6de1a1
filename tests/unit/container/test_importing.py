"""Images of each kind of source come into a store whole; those that are not are refused by name."""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.images import (
    INDEX_TYPE,
    MANIFEST_TYPE,
    LayoutWriter,
    Member,
    digest,
    folder,
    hard,
    link,
    make_layer,
    put_image,
    save_archive,
    write_image,
)
from tests.registry import running_registry
from tests.rules.capabilities import need
from tests.unit.container.conftest import CONFIG, LAYERS, MODULE, files_of
from tests.unit.image import fake_run
from tests.unit.image.archive import parse
from vmfork.config import ImageConfig
from vmfork.container.additions import ATTRIBUTES
from vmfork.container.importing import import_image
from vmfork.container.limits import ImportLimits
from vmfork.container.origin import Origin
from vmfork.errors import ArtifactError, ConfigError, HostError, ImageError, ImageNotFound
from vmfork.image import build, disk, lz4, recipe
from vmfork.image.build import build_image
from vmfork.image.record import Image
from vmfork.oci.layout import MOST_DOCUMENT
from vmfork.progress import Progress


def check(image: Image) -> None:
    found = files_of(image)
    assert found["etc/a"] == b"new"
    assert found[MODULE] == b"module"
    assert found["etc/vmfork/modules"].decode() == f"/{MODULE} /sys/bus/virtio/devices/virtio1\n"
    assert "bin/sh" not in found
    assert {"dev", "proc", "sys", "tmp", "work/here", "usr/lib/vmfork/agent"} <= set(found)
    assert image.init == "/usr/lib/vmfork/agent"


@pytest.mark.parametrize("packing", ["", "gzip", "zstd"])
async def test_a_layout_becomes_an_image(bring, store, tmp_path, packing):
    image = await bring(f"oci:{write_image(tmp_path / 'in', LAYERS, packing=packing, config=CONFIG)}:latest")
    check(image)
    assert files_of(image)["etc/vmfork/defaults"] == b"/work/here\x007:8\0PATH=/x\0A=b=c\0"
    assert store.open("it") == image
    assert (image.entrypoint, image.command, image.user) == (("/e",), ("c",), "7:8")
    assert dict(image.environment) == {"PATH": "/x", "A": "b=c"}


async def test_no_file_of_the_image_is_changed_by_what_is_added(bring, tmp_path):
    own = {
        **dict.fromkeys(("etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/machine-id", "init"), b"its own"),
        "usr/lib/python3.12/site-packages/vmfork_guest.py": b"its own",
    }
    layer = [Member(path, body=body, uid=5) for path, body in own.items()]
    found = files_of(await bring(f"oci:{write_image(tmp_path / 'in', [layer])}"))
    assert {path: found[path] for path in own} == own


async def test_each_python_of_the_image_finds_the_module(bring, tmp_path):
    places = {
        "debian": ([Member("usr/bin/python3", body=b"x", mode=0o755)], "usr/lib/python3/dist-packages"),
        "alpine": ([folder("usr/lib/python3.12/site-packages")], "usr/lib/python3.12/site-packages"),
        "slim": ([folder("usr/local/lib/python3.13/site-packages")], "usr/local/lib/python3.13/site-packages"),
        "none": ([Member("bin/sh", body=b"x", mode=0o755)], ""),
    }
    for name, (layer, where) in places.items():
        found = files_of(await bring(f"oci:{write_image(tmp_path / name, [layer])}"))
        assert [path for path in found if path.endswith("/vmfork_guest.py")] == (
            [f"{where}/vmfork_guest.py"] if where else []
        )
        if where:
            assert found[f"{where}/vmfork_guest.py"] == recipe.read_guest_module()


async def test_the_same_image_is_the_same_content(bring, tmp_path):
    source = f"oci:{write_image(tmp_path / 'in', LAYERS)}"
    assert (await bring(source)).digest == (await bring(source)).digest


async def test_each_name_of_a_symbolic_link_leads_where_it_leads(bring, tmp_path):
    pipe = Member("pipe", "pipe")
    layer = [Member("a", body=b"a"), link("l", "a"), hard("k", "l"), hard("m", "l"), pipe, hard("pipe2", "pipe")]
    image = await bring(f"oci:{write_image(tmp_path / 'in', [layer])}")
    entries = {name: (fields, body) for name, fields, body in parse(lz4.decompress(image.initramfs.read_bytes()))}
    assert [entries[name][1] for name in "klm"] == [b"a"] * 3
    assert {entries[name][0]["nlink"] for name in "klm"} == {1}
    assert entries["pipe"][0]["ino"] == entries["pipe2"][0]["ino"]


ON_DISK = [
    [
        folder("data", 0o700, uid=1234),
        Member("data/null", "char", device=(1, 3), mode=0o666),
        Member("data/pipe", "pipe", mode=0o600),
        Member("etc/a", body=b"x" * 9000, mode=0o4755, uid=7, gid=8),
        hard("etc/b", "etc/a"),
        link("etc/c", "a"),
    ]
]


@pytest.mark.needs("sqfstar")
async def test_a_root_on_a_disk_has_the_files_and_the_initramfs_what_finds_it(bring, store, tmp_path):
    image = await bring(f"oci:{write_image(tmp_path / 'in', ON_DISK, config=CONFIG)}", root="disk")
    assert (image.root_kind, image.init, image.environment["A"]) == ("disk", "/usr/lib/vmfork/agent", "b=c")
    booted = files_of(image)
    assert booted["etc/vmfork/root"] == b"squashfs\n"
    assert "etc/a" not in booted
    assert booted["usr/lib/vmfork/agent"]
    path = store.disks.locate(image.disk_sha256)
    listed = subprocess.run(["unsquashfs", "-lln", path], capture_output=True, check=True).stdout.decode()
    lines = {line.split("squashfs-root")[1]: line.split() for line in listed.splitlines() if "squashfs-root" in line}
    assert lines["/data"][:2] == ["drwx------", "1234/0"]
    assert lines["/data/null"][:4] == ["crw-rw-rw-", "0/0", "1,", "3"]
    assert lines["/data/pipe"][0] == "prw-------"
    assert lines["/etc/a"][:3] == lines["/etc/b"][:3] == ["-rwsr-xr-x", "7/8", "9000"]
    assert {"/etc/c -> a", f"/{MODULE}", "/etc/vmfork/defaults", "/work/here"} <= lines.keys()


@pytest.mark.needs("sqfstar")
async def test_a_root_whose_etc_is_a_link_lies_on_a_disk_too(bring, store, tmp_path):
    layer = [folder("system/etc"), link("etc", "/system/etc"), Member("system/etc/a", body=b"a")]
    image = await bring(f"oci:{write_image(tmp_path / 'in', [layer])}", root="disk")
    path = store.disks.locate(image.disk_sha256)
    files = disk.read_files(path, "system/etc/vmfork", tmp_path / "read")
    assert files["system/etc/vmfork/modules"].decode() == f"/{MODULE} /sys/bus/virtio/devices/virtio2\n"
    assert not (tmp_path / "read").exists()


@pytest.mark.needs("sqfstar")
async def test_an_import_is_the_same_wherever_the_root_of_its_kernels_image_lies(store, tmp_path, monkeypatch):
    fake_run.stand_in(monkeypatch, tmp_path)
    source = f"oci:{write_image(tmp_path / 'in', LAYERS)}"
    kernels = [await build_image(root, ImageConfig(root=root), store=store) for root in ("memory", "disk")]
    assert [kernel.root_kind for kernel in kernels] == ["memory", "disk"]
    for root in ("memory", "disk"):
        images = [await import_image(source, "it", kernel=kernel, store=store, root=root) for kernel in kernels]
        assert images[0].digest == images[1].digest
        booted = files_of(images[1])
        if root == "memory":
            module = fake_run.MODULE.removesuffix(".xz")
            assert {module, "usr/lib/modules/6.12/modules.dep.bin", recipe.SCRATCH_LIST} <= booted.keys()
            assert booted[recipe.MODULES_LIST].decode() == f"/{module} /sys/bus/virtio/devices/virtio1\n"


@pytest.mark.needs("sqfstar")
async def test_without_the_program_that_reads_a_disk_it_is_named(store, tmp_path, monkeypatch):
    fake_run.stand_in(monkeypatch, tmp_path)
    kernel = await build_image("default", ImageConfig(root="disk"), store=store)
    monkeypatch.setattr(disk, "_READER", "no-such-program")
    with pytest.raises(HostError, match="no-such-program") as caught:
        await import_image(f"oci:{write_image(tmp_path / 'in', LAYERS)}", "it", kernel=kernel, store=store)
    assert "squashfs-tools" in caught.value.hint


async def test_a_kernel_that_lacks_a_module_is_refused_by_its_name(bring, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "MODULES", {**recipe.MODULES, "lost-one": ""})
    with pytest.raises(ImageError, match=r"'default'.*lost_one") as caught:
        await bring(f"oci:{write_image(tmp_path / 'in', LAYERS)}")
    assert "--rebuild" in caught.value.hint


@pytest.mark.needs("sqfstar")
async def test_a_large_root_lies_on_a_disk_by_itself(bring, tmp_path, monkeypatch):
    source = f"oci:{write_image(tmp_path / 'in', LAYERS)}"
    monkeypatch.setattr(recipe, "DISK_FROM_BYTES", 1)
    assert (await bring(source)).root_kind == "disk"
    assert (await bring(source, root="memory")).root_kind == "memory"
    monkeypatch.setattr(build.disk, "find_sqfstar", missing)
    assert (await bring(source)).root_kind == "memory"
    with pytest.raises(HostError, match="sqfstar"):
        await bring(source, root="disk")


def missing() -> str:
    raise HostError("sqfstar is not installed")


async def test_a_root_that_is_nowhere_is_refused(bring, tmp_path):
    with pytest.raises(ConfigError, match="no root"):
        await bring(f"dir:{tmp_path}", root="floppy")


async def test_a_layout_in_a_tar_is_read(bring, tmp_path):
    write_image(tmp_path / "in", LAYERS)
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        tar.add(tmp_path / "in", ".")
    image = await bring(f"oci:{tmp_path / 'in.tar'}")
    assert files_of(image)["etc/a"] == b"new"


async def test_what_docker_saved_becomes_an_image(bring, tmp_path):
    path = tmp_path / "saved.tar"
    save_archive(path, LAYERS)
    for tag in ("", ":1"):
        assert files_of(await bring(f"docker-archive:{path}{tag}"))["etc/a"] == b"new"
    with pytest.raises(ArtifactError, match="0 of its 1 images"):
        await bring(f"docker-archive:{path}:2")


async def test_of_several_that_docker_saved_one_is_chosen_by_its_whole_name(bring, tmp_path):
    parts, listed = {}, []
    for number, name in enumerate(("team/a:1", "team/b:1")):
        layer = make_layer([Member("name", body=name.encode())])
        config = {"architecture": "amd64", "os": "linux", "rootfs": {"diff_ids": [digest(layer)]}}
        parts |= {f"{number}.tar": layer, f"{number}.json": json.dumps(config).encode()}
        listed.append({"Config": f"{number}.json", "RepoTags": [name], "Layers": [f"{number}.tar"]})
    path = tmp_path / "both:2.tar"
    write_tar(path, parts | {"manifest.json": json.dumps(listed).encode()}, links={})
    for name in ("team/a:1", "team/b:1"):
        assert files_of(await bring(f"docker-archive:{path}:{name}"))["name"] == name.encode()
    with pytest.raises(ArtifactError, match="2 of its 2 images"):
        await bring(f"docker-archive:{path}:1")
    with pytest.raises(ConfigError, match="nothing is at"):
        await bring(f"docker-archive:{tmp_path}/none.tar:team/a:1")


async def test_a_source_of_another_kind_is_told_before_it_is_read(bring, store, tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    for source, says in ((f"dir:{tmp_path / 'file'}", "is no folder"), (f"docker-archive:{tmp_path}", "is a folder")):
        with pytest.raises(ConfigError, match=says) as refused:
            await bring(source)
        assert "give " in refused.value.hint
    assert not store.folder.exists()


async def test_packages_do_not_take_the_place_of_what_was_imported(bring, store, tmp_path):
    (tmp_path / "root").mkdir()
    image = await bring(f"dir:{tmp_path / 'root'}")
    for more in ({}, {"rebuild": True}):
        with pytest.raises(ConfigError, match="was imported from dir:") as refused:
            await build_image("it", ImageConfig(), store=store, **more)
        assert "vmfork image rm it" in refused.value.hint
    assert store.open("it").digest == image.digest


async def test_a_layer_that_docker_saved_twice_is_a_link_in_its_second_place(bring, tmp_path):
    layer, top = make_layer([Member("a", body=b"twice")]), make_layer([Member(".wh.a")])
    rootfs = {"diff_ids": [digest(layer), digest(top), digest(layer)]}
    config = {"architecture": "amd64", "os": "linux", "rootfs": rootfs}
    paths = ["0/layer.tar", "1/layer.tar", "2/layer.tar"]
    parts = {
        "0/layer.tar": layer, "1/layer.tar": top, "c.json": json.dumps(config).encode(),
        "manifest.json": json.dumps([{"Config": "c.json", "RepoTags": None, "Layers": paths}]).encode(),
    }  # fmt: skip
    for number, target in enumerate(["../0/layer.tar", "../../0/layer.tar", "/etc/passwd", "layer.tar"]):
        saved = tmp_path / f"{number}.tar"
        write_tar(saved, parts, links={"2/layer.tar": target})
        if not number:
            assert files_of(await bring(f"docker-archive:{saved}"))["a"] == b"twice"
        else:  # it leads out of the archive, or to itself
            assert "has no '2/layer.tar'" in await _told(bring, f"docker-archive:{saved}")


def write_tar(path: Path, parts: dict[str, bytes], *, links: dict[str, str]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, body in {**parts, **dict.fromkeys(links, b"")}.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            if name in links:
                info.type, info.linkname = tarfile.SYMTYPE, links[name]
            tar.addfile(info, io.BytesIO(body))


async def test_what_a_folder_says_of_folders_and_files_beside_their_content_is_taken(bring, tmp_path):
    root = tmp_path / "root"
    (root / "data").mkdir(parents=True)
    (root / "data/a").touch()
    try:
        for path in (root / "data", root / "data/a"):
            os.setxattr(path, "user.note", path.name.encode())
    except OSError:
        need("attributes", found=False)
    said = files_of(await bring(f"dir:{root}"))[ATTRIBUTES].decode().split("\0")
    assert said == ["/data", "user.note", b"data".hex(), "/data/a", "user.note", b"a".hex(), ""]


async def test_a_folder_becomes_an_image(bring, tmp_path):
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/a").write_bytes(b"new")
    os.link(root / "etc/a", root / "b")
    (root / "l").symlink_to("/etc")
    found = files_of(await bring(f"dir:{root}"))
    assert (found["l"], found["etc/a"] or found["b"]) == (b"/etc", b"new")


async def test_a_folder_with_sockets_of_several_names_becomes_an_image_without_them(bring, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(root / "a"))
    os.link(root / "a", root / "b")
    (root / "c").write_bytes(b"c")
    found = files_of(await bring(f"dir:{root}"))
    assert found["c"] == b"c"
    assert not {"a", "b"} & found.keys()


async def test_a_time_of_a_folder_that_no_initramfs_can_hold_is_the_nearest(bring, tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root/a").write_bytes(b"a")
    os.utime(tmp_path / "root/a", (1 << 33, 1 << 33))
    image = await bring(f"dir:{tmp_path / 'root'}")
    times = {name: fields["mtime"] for name, fields, _ in parse(lz4.decompress(image.initramfs.read_bytes()))}
    assert times["a"] == 0xFFFF_FFFF


@pytest.mark.parametrize("layer", [[Member("bin/sh", body=b"x")], [link("bin", "sh"), link("sh", "bin")]])
async def test_a_folder_of_programs_that_cannot_be_is_refused_by_its_name(bring, store, tmp_path, layer):
    source = f"oci:{write_image(tmp_path / 'in', [layer], config={'WorkingDir': '/bin/sh/x'})}"
    with pytest.raises(ArtifactError, match=r"'/bin/sh/x' \(WorkingDir\)"):
        await bring(source)
    assert store.list_names() == []


@pytest.mark.parametrize("name", ["etc", "usr"])
async def test_an_image_without_room_for_what_its_guest_needs_is_refused_by_its_name(bring, tmp_path, name):
    source = f"oci:{write_image(tmp_path / 'in', [[Member(name, body=b'x')]])}"
    with pytest.raises(ArtifactError, match=f"/{name}/.* below '{name}', which is no folder") as caught:
        await bring(source)
    assert str(tmp_path / "in") in caught.value.message
    assert "folder" in caught.value.hint


async def test_links_that_lead_to_no_folder_yet_stay_and_lead_to_one(bring, tmp_path):
    layer = [link("work", "/data/deep"), link("tmp", "var/tmp"), link("run", "/var/run")]
    image = await bring(f"oci:{write_image(tmp_path / 'in', [layer], config={'WorkingDir': '/work'})}")
    entries = {name: (fields, body) for name, fields, body in parse(lz4.decompress(image.initramfs.read_bytes()))}
    assert [entries[name][1] for name in ("work", "tmp", "run")] == [b"/data/deep", b"var/tmp", b"/var/run"]
    modes = [entries[name][0]["mode"] for name in ("data/deep", "var/tmp", "var/run")]
    assert modes == [0o40755, 0o41777, 0o40755]


async def test_of_an_index_the_image_for_this_architecture_is_taken(bring, tmp_path):
    layout = LayoutWriter(tmp_path / "in")
    wrong = layout.add_image([make_layer([Member("arm")])], arch="arm64")
    right = layout.add_image([make_layer([Member("etc/a", body=b"new")])])
    platforms = [{**wrong, "platform": {"os": "linux", "architecture": "arm64"}}]
    both = [*platforms, {**right, "platform": {"os": "linux", "architecture": "amd64"}}]
    for manifests in (both, platforms):
        index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests}
        layout.manifests = [layout.put_json(index, INDEX_TYPE)]
        layout.finish()
        if manifests is both:
            assert "arm" not in files_of(await bring(f"oci:{layout.path}"))
    with pytest.raises(ArtifactError, match="linux/arm64"):
        await bring(f"oci:{layout.path}")


def _index(**said: object) -> dict[str, object]:
    return {"schemaVersion": 2, "mediaType": INDEX_TYPE, **said}


@pytest.mark.parametrize(
    "index",
    [_index(), _index(manifests=5), _index(manifests=[5]), _index(manifests=[{"platform": "x"}]), [], b"[" * 100_000],
)
async def test_an_index_that_makes_no_sense_is_refused(bring, tmp_path, index):
    layout = LayoutWriter(tmp_path / "in")
    layout.manifests = [layout.put(index if isinstance(index, bytes) else json.dumps(index).encode(), INDEX_TYPE)]
    layout.finish()
    assert await _told(bring, f"oci:{layout.path}")


async def test_an_index_of_indexes_without_end_and_a_configuration_of_any_size_are_refused(bring, tmp_path):
    layout = LayoutWriter(tmp_path / "in")
    layout.add_image([make_layer([Member("a")])])
    named = layout.manifests[0]
    for _ in range(10):
        named = layout.put_json(_index(manifests=[named]), INDEX_TYPE)
    layout.manifests = [named]
    layout.finish()
    assert "to no image" in await _told(bring, f"oci:{layout.path}")
    large = write_image(tmp_path / "large", LAYERS, config={"Labels": {"a": "x" * MOST_DOCUMENT}})
    assert "its configuration has" in await _told(bring, f"oci:{large}")


async def _told(bring, source: str, **more: object) -> str:
    with pytest.raises(ArtifactError) as told:
        await bring(source, **more)
    return told.value.reason


async def test_an_image_that_is_not_for_us_or_not_whole_is_refused_and_leaves_nothing(bring, store, tmp_path):
    def written(name: str, layers: object = LAYERS, **more: object) -> str:
        return f"oci:{write_image(tmp_path / name, layers, **more)}"  # type: ignore[arg-type]

    assert "linux/arm64" in await _told(bring, written("arch", arch="arm64"))
    assert "no layers" in await _told(bring, written("none", []))
    assert "not known" in await _told(bring, written("kind", layer_type="application/vnd.example"))
    assert "configuration says" in await _told(bring, written("diff", diff_ids=[digest(b"x"), digest(b"y")]))
    assert "tells of 1 layers" in await _told(bring, written("count", diff_ids=[digest(b"x")]))
    assert "unpacked_bytes" in await _told(bring, written("bomb"), limits=ImportLimits(unpacked_bytes=1000))
    assert "(limit layers)" in await _told(bring, written("many"), limits=ImportLimits(layers=1))
    assert "upwards" in await _told(bring, written("up", [[Member("../x")]]))
    assert "'no'" in await _told(bring, written("tag") + ":no")
    with pytest.raises(ImageNotFound):
        store.open("it")
    assert not [path for path in store.folder.iterdir() if path.name.startswith(".staging")]


async def test_a_layer_that_was_swapped_cut_off_or_lost_is_refused(bring, tmp_path):
    write_image(tmp_path / "in", LAYERS, packing="")
    name = digest(make_layer(LAYERS[0])).replace(":", "/")
    blob = tmp_path / "in/blobs" / name
    whole = blob.read_bytes()
    for data, told in ((whole[:-512], "should have"), (b"x" * len(whole), "no layer"), (whole[:-1] + b"\1", "digest")):
        blob.write_bytes(data)
        assert told in await _told(bring, f"oci:{tmp_path / 'in'}")
    blob.unlink()
    assert "missing" in await _told(bring, f"oci:{tmp_path / 'in'}")


async def test_layers_in_another_order_are_refused(bring, tmp_path):
    layout = LayoutWriter(tmp_path / "in")
    named = layout.add_image([make_layer(members) for members in LAYERS])
    manifest = json.loads((layout.path / "blobs" / named["digest"].replace(":", "/")).read_bytes())
    manifest["layers"].reverse()
    layout.manifests = [layout.put_json(manifest, MANIFEST_TYPE)]
    layout.finish()
    assert "the configuration says" in await _told(bring, f"oci:{layout.path}")


@pytest.mark.parametrize(
    "source",
    [
        "", " ", "oci:", "dir:", "docker-archive:", "python:3.13", "/a/path", "./a", "~/a", "../a", "ftp:x", "a\0b", 5,
        "https://registry.example/a", "registry.example", "registry.example/", "registry.example/A",
        "registry.example/a:", "registry.example/a:b:c", "registry.example/a@sha256:12", "registry.example/a@md5:0",
        "registry.example/a//b",
        f"registry.example/{'a' * 256}", f"registry.example/a:{'t' * 129}", "registry.example:port/a", "-x/a",
    ],
)  # fmt: skip
async def test_a_source_that_is_none_is_refused(bring, source):
    with pytest.raises(ConfigError) as told:
        await bring(source)
    assert told.value.field == "source"


@pytest.mark.parametrize("kind", ["oci", "docker-archive", "dir"])
async def test_a_path_where_nothing_is_is_refused(bring, tmp_path, kind):
    with pytest.raises(ConfigError):
        await bring(f"{kind}:{tmp_path / 'none'}")


async def test_the_image_default_is_not_replaced(store, kernel, tmp_path):
    with pytest.raises(ConfigError):
        await import_image(f"dir:{tmp_path}", "default", kernel=kernel, store=store)


def test_a_path_with_a_colon_is_told_from_a_tag(tmp_path):
    (tmp_path / "a:b").mkdir()
    assert Origin.parse(f"oci:{tmp_path}/a:b").tag == ""
    assert Origin.parse(f"oci:{tmp_path}/a:c") == Origin("oci", f"{tmp_path}/a", "c")
    assert Origin.parse("oci:a/b:c/d") == Origin("oci", "a/b:c/d")


@pytest.mark.needs("docker-registry", "oras")
async def test_an_image_is_pulled_from_a_registry(bring, tmp_path):
    layout = LayoutWriter(tmp_path / "in")
    named = layout.add_image([make_layer(members) for members in LAYERS], config=CONFIG)
    with running_registry(tmp_path / "registry") as registry:
        reference = f"{registry.host}/team/app:1"
        body = put_image(layout, reference)
        image = await bring(reference)
        check(image)
        assert image.source == reference
        assert files_of(await bring(f"{registry.host}/team/app@{named['digest']}"))["etc/a"] == b"new"
        assert "no manifests/2" in await _told(bring, f"{registry.host}/team/app:2")
        for each in registry.blobs:
            if each.stat().st_size == body["layers"][0]["size"]:
                each.write_bytes(b"x" * each.stat().st_size)
        assert await _told(bring, reference)


async def test_progress_is_told_up_to_the_end(bring, tmp_path):
    told: list[Progress] = []
    await bring(f"oci:{write_image(tmp_path / 'in', LAYERS)}", progress=told.append)
    assert [each.step for each in told] == [
        "reading the image", "applying layer 1 of 2", "applying layer 2 of 2", "packing the image", "done",
    ]  # fmt: skip
    fractions = [each.fraction for each in told]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)


@pytest.mark.parametrize("step", ["reading the image", "applying layer 2", "packing the image"])
async def test_when_it_is_cancelled_the_name_leads_where_it_led(bring, store, tmp_path, step):
    former = await bring(f"oci:{write_image(tmp_path / 'former', LAYERS[:1])}")

    def cancel(progress: Progress) -> None:
        if progress.step.startswith(step):
            task.cancel()

    # More than is done before the cancel is seen.
    large = [folder("many"), *(Member(f"many/{number}", body=b"x" * 5000) for number in range(4000))]
    layout = write_image(tmp_path / "in", [*LAYERS, large])
    task = asyncio.ensure_future(bring(f"oci:{layout}", progress=cancel))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert store.open("it") == former
    assert not [path for path in store.folder.iterdir() if path.name.startswith(".staging")]
