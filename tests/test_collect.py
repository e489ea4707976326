"""Shards into one catalogue: sorted, whole, in every format, and in the layout that LSDB opens."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from astropy.table import Table
from command_lines import ENGINE, first_row, one_line, read, write_settings
from judged_stars import random_confidence
from pyarrow import dataset

from xpkern.catalog import flagging
from xpkern.catalog.derived import DERIVED
from xpkern.catalog.flagging import flag_catalog
from xpkern.catalog.hats import order_and_pixel
from xpkern.catalog.manifest import ColumnStatistics, manifest_beside
from xpkern.catalog.stream import CatalogReader
from xpkern.cli import main
from xpkern.errors import InputError
from xpkern.model import load_model
from xpkern.shards import collect as collect_module
from xpkern.shards import load_settings, run_survey
from xpkern.shards.collect import Shards, collect
from xpkern.shards.hats import collect_hats, healpix_index
from xpkern.shards.virtual import refer_to
from xpkern.survey.run import simulate_survey

FILES, STARS_OF_A_FILE = 3, 20


@pytest.fixture(scope="module")
def shuffled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A survey whose files are in no order, and have a source in common: the settings of its run, which is done."""
    folder = tmp_path_factory.mktemp("shuffled")
    simulate_survey(folder / "sim", FILES * STARS_OF_A_FILE, seed=8, truth="model", stars_per_file=STARS_OF_A_FILE)
    paths = sorted((folder / "sim").glob("Xp*.csv.gz"))
    contents = [gzip.decompress(path.read_bytes()).splitlines(keepends=True) for path in paths]
    start = first_row(contents[0])
    rows = [line for content in contents for line in content[start:]]
    order = np.random.default_rng(1).permutation(len(rows))
    for number, path in enumerate(paths):
        chosen = [rows[index] for index in order[number::FILES]]
        if number == 1:
            chosen.append(rows[order[0]])
        path.write_bytes(gzip.compress(b"".join([*contents[0][:start], *chosen])))
    settings = folder / "survey.toml"
    settings.write_text(
        f'spectra = "sim/Xp*.csv.gz"\ngaia_source = "sim/gaia_source.fits"\noutput = "shards"\nengine = "{ENGINE}"\n'
    )
    run_survey(load_settings(settings))
    return settings


def all_rows(settings: Path, ending: str) -> dict[str, np.ndarray]:
    """What all shards hold, by source_id."""
    parts = [read(path) for path in sorted((settings.parent / "shards").glob(f"*[0-9]{ending}"))]
    assert len(parts) == FILES
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(whole["source_id"], kind="stable")
    return {name: values[order] for name, values in whole.items()}


def check_manifest(path: Path, files: int, columns: dict[str, np.ndarray]) -> None:
    """The manifest is of these columns, and of so many files in its folder."""
    manifest = json.loads(path.read_text())
    assert len(manifest["files"]) == files
    for name, recorded in manifest["files"].items():
        content = (path.parent / name).read_bytes()
        assert recorded == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert manifest["rows"] == len(next(iter(columns.values())))
    assert set(columns) <= set(manifest["columns"])
    for name, values in columns.items():
        found, known = manifest["columns"][name], np.isfinite(values)
        assert found["known"] == known.sum(axis=0).tolist(), name
        if values.ndim == 1 and known.any():
            whole = values[known].astype(values.dtype if values.dtype.kind in "iu" else float)
            assert (found["minimum"], found["maximum"]) == (whole.min(), whole.max()), name
            assert np.isclose(found["mean"], whole.mean(dtype=float), rtol=1e-12), name
        elif values.ndim == 1:
            assert found["minimum"] is found["maximum"] is found["mean"] is None


@pytest.mark.parametrize("sorted_rows", [7, 1 << 18])
def test_one_file_by_source_id(shuffled, tmp_path, monkeypatch, sorted_rows):
    monkeypatch.setattr(collect_module, "SORTED_ROWS", sorted_rows)
    summary = collect(load_settings(shuffled), tmp_path / "catalog.h5")
    assert (summary.rows, summary.shards, summary.missing) == (FILES * STARS_OF_A_FILE + 1, FILES, [])
    expected = all_rows(shuffled, ".h5")
    assert len(summary.duplicates) == 1
    assert np.count_nonzero(expected["source_id"] == summary.duplicates[0]) == 2
    found = read(tmp_path / "catalog.h5")
    assert list(found) == list(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    expected = all_rows(shuffled, ".diagnostics.h5")
    for name, values in read(tmp_path / "catalog.diagnostics.h5").items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)
    one_shard = min((shuffled.parent / "shards").glob("*[0-9].h5"))
    with h5py.File(tmp_path / "catalog.h5") as file, h5py.File(one_shard) as shard:
        records = [json.loads(path.read_text()) for path in (shuffled.parent / "shards").glob("*.done.json")]
        counts = {name: sum(record["counts"][name] for record in records) for name in records[0]["counts"]}
        assert counts["photometry_removed_twomass_quality"] > 0
        expected = {name: value for name, value in shard.attrs.items() if name != "rows"} | counts
        assert {name: value for name, value in file.attrs.items() if name != "rows"} == expected
        for name in file:
            assert dict(file[name].attrs) == dict(shard[name].attrs)
    check_manifest(tmp_path / "catalog.h5.manifest.json", 2, found)


def test_a_manifest_of_columns_of_arrays_and_of_nothing(tmp_path):
    statistics = ColumnStatistics()
    statistics.add({"a": np.zeros((0, 2)), "b": np.zeros(0), "c": np.zeros(0, np.int64)})
    assert statistics.as_dict() == {}
    for rows in ([[1.0, np.nan], [3.0, np.nan]], [[np.nan, np.nan]]):
        statistics.add({"a": np.array(rows), "c": np.full(len(rows), (1 << 62) + len(rows))})
    assert statistics.as_dict() == {
        "a": {"known": [2, 0], "minimum": [1.0, None], "maximum": [3.0, None], "mean": [2.0, None]},
        "c": {"known": 3, "minimum": (1 << 62) + 1, "maximum": (1 << 62) + 2, "mean": float(1 << 62)},
    }


def test_the_published_layout_keeps_its_own_ln_prior(shuffled, tmp_path):
    shutil.copytree(shuffled.parent / "sim", tmp_path / "sim")
    settings = tmp_path / "survey.toml"
    settings.write_text(shuffled.read_text() + 'layout = "zgr23"\n')
    run_survey(load_settings(settings))
    collect(load_settings(settings), tmp_path / "catalog.h5")
    catalog, diagnostics = read(tmp_path / "catalog.h5"), read(tmp_path / "catalog.diagnostics.h5")
    assert (np.diff(catalog["gdr3_source_id"]) >= 0).all()
    np.testing.assert_array_equal(catalog["gdr3_source_id"], diagnostics["source_id"])
    fitted = np.isfinite(diagnostics["ln_prior"])
    offset = catalog["ln_prior"][fitted] - diagnostics["ln_prior"][fitted]
    np.testing.assert_allclose(offset, 1.5 * np.log(2 * np.pi), rtol=1e-4)


@pytest.mark.filterwarnings("ignore:'dex' did not parse")  # as the archive has it, though FITS does not
def test_command_in_other_formats(shuffled, tmp_path, capsys):
    for ending in ("fits", "parquet"):
        assert main(["collect", str(shuffled), "-o", str(tmp_path / f"catalog.{ending}")]) == 0
        printed = capsys.readouterr()
        assert f"{FILES} shards, {FILES * STARS_OF_A_FILE + 1} stars" in printed.out
        assert "1 sources are in it more than once" in printed.err
        table = Table.read(tmp_path / f"catalog.{ending}")
        np.testing.assert_array_equal(table["source_id"], all_rows(shuffled, ".h5")["source_id"])
        assert str(table["teff"].unit) == "K"


@pytest.mark.parametrize("name", ["catalog.csv", "catalog.vot", "catalog.h5.gz"])
def test_a_file_of_another_format_is_no_folder(shuffled, tmp_path, capsys, name):
    assert main(["collect", str(shuffled), "-o", str(tmp_path / name)]) == 1
    assert f"{name}: the name must end in .h5, .hdf5, .fits, .ecsv or .parquet" in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_shard_is_no_part_of_a_catalogue(shuffled, tmp_path, capsys):
    """One bit is enough, also where no value is copied; what is removed is made anew."""
    folder = tmp_path / "run"
    shutil.copytree(shuffled.parent, folder)
    settings = str(folder / "survey.toml")
    for ending in (".diagnostics.h5", ".h5"):
        shard = min((folder / "shards").glob(f"*[0-9]{ending}"))
        whole = shard.read_bytes()
        shard.write_bytes(whole[:-5000] + bytes([whole[-5000] ^ 1]) + whole[-4999:])
        for name, *option in (["catalog.h5"], ["catalog.h5", "--virtual"], *([["catalog"]] if ending == ".h5" else [])):
            assert main(["collect", settings, *option, "-o", str(tmp_path / name)]) == 1
            assert f"{shard}: is damaged: its SHA-256 is not that of its marker" in one_line(capsys)
            assert not (tmp_path / name).exists()
        if ending != ".h5":
            shard.write_bytes(whole)
    shard.write_bytes(whole[:-5000])  # what is of another size has no marker that counts
    assert main(["collect", settings, "--virtual", "-o", str(tmp_path / "catalog.h5")]) == 3
    assert "1 files of spectra have no whole shard; the first: " in one_line(capsys)
    for path in [*tmp_path.glob("catalog*.h5"), *shard.parent.glob(f"{shard.stem}.*")]:
        path.unlink()
    assert main(["run", settings]) == 0
    assert main(["collect", settings, "-o", str(tmp_path / "catalog.h5")]) == 0


def test_nothing_of_the_run_is_replaced(shuffled, capsys):
    """Neither what it read nor what it has made, whatever --overwrite says."""
    folder = shuffled.parent
    shard = min((folder / "shards").glob("*[0-9].h5"))
    before = {path: path.read_bytes() for path in (folder / "sim" / "gaia_source.fits", shard)}
    for option in ([], ["--virtual"]):
        for path in before if not option else [shard]:
            assert main(["collect", str(shuffled), "--overwrite", *option, "-o", str(path)]) == 1
            assert f"{path}: is both input and output" in one_line(capsys)
    assert {path: path.read_bytes() for path in before} == before


def test_what_is_missing_or_mixed_is_told(shuffled, tmp_path, capsys):
    shutil.copytree(shuffled.parent / "sim", tmp_path / "sim")
    settings = tmp_path / "survey.toml"
    settings.write_text(shuffled.read_text())
    assert main(["collect", str(settings), "-o", str(tmp_path / "catalog.h5")]) == 1
    assert "no shard is done" in capsys.readouterr().err
    run_survey(load_settings(settings), part=1, parts=2)
    assert main(["collect", str(settings), "-o", str(tmp_path / "partial.h5")]) == 3
    assert "1 files of spectra have no whole shard" in capsys.readouterr().err
    settings.write_text(shuffled.read_text() + "starts = 1\n")
    with pytest.raises(InputError, match="2 shards were made by other settings"):
        collect(load_settings(settings), tmp_path / "catalog.h5")


class TestVirtual:
    def test_the_shards_as_one(self, shuffled, tmp_path, capsys):
        """Every value of every shard, with units and what made it; wherever the whole folder goes."""
        folder = tmp_path / "moved, ü"
        shutil.copytree(shuffled.parent, folder)
        assert main(["collect", str(folder / "survey.toml"), "--virtual", "-o", str(folder / "catalog.h5")]) == 0
        assert "not in the order of source_id" in capsys.readouterr().out
        folder = folder.rename(tmp_path / "moved again")
        for ending in (".h5", ".diagnostics.h5"):
            found = read(folder / f"catalog{ending}")
            expected = all_rows(folder / "survey.toml", ending)
            assert list(found) == list(expected)
            order = np.argsort(found["source_id"], kind="stable")
            for name, values in expected.items():
                np.testing.assert_array_equal(found[name][order], values, err_msg=name)
        with h5py.File(folder / "catalog.h5") as file, h5py.File(min((folder / "shards").glob("*[0-9].h5"))) as shard:
            assert file["teff"].is_virtual
            assert file.attrs["rows"] == FILES * STARS_OF_A_FILE + 1
            assert dict(file["teff"].attrs) == dict(shard["teff"].attrs)
        assert (folder / "catalog.h5").stat().st_size < 300_000
        whole = CatalogReader(folder / "catalog.h5")
        assert len(whole) == FILES * STARS_OF_A_FILE + 1
        (block,) = whole.blocks(["teff", "source_id"])
        np.testing.assert_array_equal(block["teff"], read(folder / "catalog.h5")["teff"])

    def test_sorted_shards_make_a_sorted_catalogue(self, shuffled, tmp_path):
        """As :func:`collect` merges them; a shard that is gone is NaN, never a number."""
        collect(load_settings(shuffled), tmp_path / "merged.h5")
        merged = read(tmp_path / "merged.h5")
        half = len(merged["source_id"]) // 2
        paths, numbers = [], []
        for number, rows in enumerate((slice(half, None), slice(0, half))):
            paths.append(tmp_path / f"shard {number}.h5")
            numbers.append(merged["source_id"][rows])
            with h5py.File(paths[-1], "w") as file:
                for name, values in merged.items():
                    file[name] = values[rows]
        shards = Shards("default", paths, paths, numbers, {}, [])
        summary = refer_to(shards, tmp_path / "virtual.h5")
        assert summary.in_order
        for name, values in read(tmp_path / "virtual.h5").items():
            np.testing.assert_array_equal(values, merged[name], err_msg=name)
        paths[0].unlink()
        left = read(tmp_path / "virtual.h5")
        np.testing.assert_array_equal(left["teff"][:half], merged["teff"][:half])
        assert np.isnan(left["teff"][half:]).all()
        assert (left["source_id"][half:] == -1).all()
        assert (left["quality_flags"][half:] == np.iinfo(left["quality_flags"].dtype).max).all()

    def test_bad_names(self, shuffled, tmp_path, capsys):
        (tmp_path / "catalog.h5").touch()
        for name, message in (("catalog.fits", "only HDF5 can refer"), ("catalog.h5", "exists; --overwrite")):
            assert main(["collect", str(shuffled), "--virtual", "-o", str(tmp_path / name)]) == 1
            assert message in one_line(capsys)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestHats:
    def test_every_row_lies_in_its_pixel(self, shuffled, tmp_path):
        pytest.importorskip("cdshealpix", reason="the extra 'survey' is not installed")
        summary = collect_hats(load_settings(shuffled), tmp_path / "catalog", partition_rows=5)
        assert summary.rows == FILES * STARS_OF_A_FILE + 1
        found = []
        for path in (tmp_path / "catalog" / "dataset").rglob("Npix=*.parquet"):
            order, pixel = int(path.parts[-3].split("=")[1]), int(path.stem.split("=")[1])
            table = Table.read(path)
            assert len(table) <= 5
            assert set(table["_healpix_29"] >> 2 * (29 - order)) == {pixel}
            assert (np.diff(table["_healpix_29"]) >= 0).all()
            found.append(np.asarray(table["source_id"]))
        np.testing.assert_array_equal(np.sort(np.concatenate(found)), all_rows(shuffled, ".h5")["source_id"])
        assert len(found) > 3
        parts = 2 * len(found) + 5  # both tables, metadata of both kinds, properties of both names, the list of pixels
        check_manifest(tmp_path / "catalog" / "manifest.json", parts, all_rows(shuffled, ".h5"))
        with pytest.raises(InputError, match="exists; --overwrite"):
            collect_hats(load_settings(shuffled), tmp_path / "catalog")
        collect_hats(load_settings(shuffled), tmp_path / "catalog", overwrite=True)
        assert len(list((tmp_path / "catalog" / "dataset").rglob("Npix=*.parquet"))) < len(found)
        with pytest.raises(InputError, match="is no catalogue in the HATS layout"):
            collect_hats(load_settings(shuffled), tmp_path, overwrite=True)

    @pytest.mark.filterwarnings("ignore")  # what the libraries of hats warn each other of
    def test_a_validator_finds_the_partitions_and_nothing_else(self, shuffled, tmp_path):
        """Those of HATS look for its naming in the whole folder; the companion has another, also once judged."""
        pytest.importorskip("cdshealpix", reason="the extra 'survey' is not installed")
        folder = tmp_path / "catalog"
        collect_hats(load_settings(shuffled), folder, partition_rows=5)
        flag_catalog(folder, tmp_path / "flagged", **dict(zip(("model", "prior"), load_model(), strict=True)))
        for made in (folder, tmp_path / "flagged"):
            listed = [line.split(",") for line in (made / "partition_info.csv").read_text().split()[1:]]
            expected = sorted((int(order), int(pixel)) for order, pixel in listed)
            assert sorted(map(order_and_pixel, made.rglob("Norder*/Dir*/Npix*"))) == expected
            companion = dataset.dataset(made / "diagnostics", partitioning="hive")
            assert companion.count_rows() == FILES * STARS_OF_A_FILE + 1
            with contextlib.suppress(ModuleNotFoundError):
                from hats.io.validation import is_valid_catalog

                assert is_valid_catalog(made, strict=True)

    def test_shards_without_rows_make_no_folder(self, shuffled, tmp_path, capsys):
        """HATS has no empty catalogue, a file may be one; what is refused is what was asked for."""
        pytest.importorskip("cdshealpix", reason="the extra 'survey' is not installed")
        lines = gzip.decompress(min((shuffled.parent / "sim").glob("Xp*.csv.gz")).read_bytes()).splitlines(True)
        (tmp_path / "none.csv").write_bytes(b"".join(lines[: first_row(lines)]))
        settings = write_settings(
            tmp_path, spectra="none.csv", gaia_source=str(shuffled.parent / "sim/gaia_source.fits")
        )
        assert main(["run", str(settings)]) == 0
        assert main(["collect", str(settings), "-o", str(tmp_path / "catalog.h5")]) == 0
        capsys.readouterr()
        before = sorted(tmp_path.iterdir())
        assert main(["collect", str(settings), "-o", str(tmp_path / "catalog")]) == 1
        assert one_line(capsys).startswith(f"xpkern: {tmp_path / 'catalog'}: the shards have no rows, and ")
        assert sorted(tmp_path.iterdir()) == before

    def test_flags_are_those_of_one_file(self, shuffled, tmp_path, monkeypatch, capsys):
        pytest.importorskip("cdshealpix", reason="the extra 'survey' is not installed")
        monkeypatch.setattr(flagging, "BLOCK_ROWS", 3)
        folder, flagged = tmp_path / "catalog", tmp_path / "flagged"
        collect_hats(load_settings(shuffled), folder, partition_rows=5)
        collect(load_settings(shuffled), tmp_path / "catalog.h5")
        model, prior = load_model()
        model = replace(model, confidence=random_confidence(np.random.default_rng(3), model.wavelength, (8,)))
        judging = {"model": model, "prior": prior}
        before = contents(folder)
        expected = flag_catalog(tmp_path / "catalog.h5", **judging)
        summary = flag_catalog(folder, flagged, derived=True, **judging)
        assert (summary.rows, summary.cuts) == (expected.rows, expected.cuts)
        assert contents(folder) == before

        def interrupted(_: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            flag_catalog(folder, on_progress=interrupted, **judging)
        with pytest.raises(InputError, match="exists; --overwrite"):
            flag_catalog(folder, flagged, **judging)
        with pytest.raises(InputError, match="the name of a file, where a folder is flagged"):
            flag_catalog(folder, tmp_path / "flagged.fits", **judging)
        assert contents(folder) == before
        (tmp_path / "link").symlink_to(folder)
        flag_catalog(tmp_path / "link", **judging)
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
            ["catalog", "flagged", "link", "catalog.h5", "catalog.diagnostics.h5", "catalog.h5.manifest.json"]
        )
        judged = read(tmp_path / "catalog.h5")
        check_manifest(manifest_beside(tmp_path / "catalog.h5"), 2, judged)
        for found, n_derived in ((folder, 0), (flagged, len(DERIVED))):
            assert contents(found).keys() == before.keys()
            check_manifest(found / "manifest.json", len(before) - 1, judged)
            for table, ending in (("catalog", ".h5"), ("diagnostics", ".diagnostics.h5")):
                whole = read(tmp_path / f"catalog{ending}")
                blocks = list(CatalogReader(found, table=table).blocks(list(whole)))
                order = np.argsort(np.concatenate([block["source_id"] for block in blocks]), kind="stable")
                for name, values in whole.items():
                    column = np.concatenate([block[name] for block in blocks])[order]
                    np.testing.assert_array_equal(column, values, err_msg=name)
            names = CatalogReader(found).names
            assert names[0] == "_healpix_29"
            assert len(names) == 1 + len(read(tmp_path / "catalog.h5")) + n_derived
            said = contents(found)["hats.properties"].split(b"\n", 1)
            assert said == [f"obs_collection={found.name}".encode(), before["hats.properties"].split(b"\n", 1)[1]]
        shutil.rmtree(folder / "diagnostics")
        assert main(["flag", str(folder)]) == 1
        assert "catalog: has no diagnostics companion in catalog/diagnostics" in one_line(capsys)

    def test_a_row_without_position_lies_where_its_source_id_says(self):
        pytest.importorskip("cdshealpix", reason="the extra 'survey' is not installed")
        source_id = np.array([4295806720, 5405570973190252288])
        index = healpix_index(np.full(2, np.nan), np.full(2, np.nan), source_id)
        np.testing.assert_array_equal(index >> 2 * (29 - 12), source_id >> 35)
        # the archive's own example, at ra 44.996, dec 0.0056
        with_position = healpix_index(np.array([44.99615]), np.array([0.005615]), source_id[:1])
        assert with_position[0] >> 2 * (29 - 8) == index[0] >> 2 * (29 - 8)

    @pytest.mark.filterwarnings("ignore")  # what lsdb's own libraries warn each other of
    def test_lsdb_opens_it(self, shuffled, tmp_path):
        lsdb = pytest.importorskip("lsdb", reason="lsdb is not installed")
        collect_hats(load_settings(shuffled), tmp_path / "catalog", partition_rows=30)
        expected = all_rows(shuffled, ".h5")
        catalog = lsdb.open_catalog(tmp_path / "catalog")
        rows = catalog.compute()
        assert sorted(rows["source_id"]) == expected["source_id"].tolist()
        star = int(np.flatnonzero(np.isfinite(expected["ra"]))[0])
        near = catalog.cone_search(expected["ra"][star], expected["dec"][star], 1.0).compute()
        assert expected["source_id"][star] in near["source_id"].tolist()
