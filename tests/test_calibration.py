"""The linear map from coefficients to flux: shipped data against GaiaXPy, and files that are none."""

import numpy as np
import pytest

from xpkern.errors import InputError
from xpkern.grid import XP_WAVELENGTH
from xpkern.observe.calibration import Calibration


def small_calibration(**changes):
    values = {
        "release": "test",
        "instrument_model": "none",
        "bp_design": np.arange(61 * 3, dtype=float).reshape(61, 3),
        "rp_design": np.ones((61, 2)),
        "wavelength": XP_WAVELENGTH,
        "bp_basis_function_id": 1,
        "rp_basis_function_id": 2,
    }
    return Calibration(**(values | changes))


def test_default_is_what_gaiaxpy_was_found_to_do(shared_data):
    calibration = Calibration.default()
    with np.load(shared_data / "vectors" / "xp_design_gaiaxpy_2.1.5_392_992_10.npz") as stored:
        assert np.array_equal(calibration.wavelength, stored["grid"])
        assert np.array_equal(np.hstack([calibration.bp_design, calibration.rp_design]), stored["A"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_default_is_what_the_installed_gaiaxpy_does(capsys):
    pytest.importorskip("gaiaxpy")
    shipped, installed = Calibration.default(), Calibration.from_gaiaxpy()
    for name in ("bp_design", "rp_design"):
        design = getattr(shipped, name)
        # a few operations in float64: other versions of NumPy may round the last digit otherwise
        assert np.allclose(getattr(installed, name), design, rtol=1e-12, atol=1e-14 * np.abs(design).max())
    assert (shipped.n_bp, shipped.n_rp) == (installed.n_bp, installed.n_rp) == (55, 55)
    assert (shipped.bp_basis_function_id, shipped.rp_basis_function_id) == (56, 57)
    assert shipped.release == installed.release


def test_sides_overlap_at_642_nm_only():
    calibration = Calibration.default()
    has_bp, has_rp = calibration.bp_design.any(axis=1), calibration.rp_design.any(axis=1)
    assert has_bp.sum() == 26
    assert has_rp.sum() == 36
    assert XP_WAVELENGTH[has_bp & has_rp].tolist() == [642.0]


def test_a_saved_file_is_replaced_only_if_that_is_said(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(b"precious")
    with pytest.raises(InputError, match=r"exists; --overwrite \(overwrite=True\) replaces it") as caught:
        small_calibration().save(path)
    assert caught.value.file == str(path)
    assert path.read_bytes() == b"precious"
    small_calibration().save(str(path), overwrite=True)
    assert Calibration.load(path).release == "test"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(InputError, match="its folder does not exist"):
        small_calibration().save(tmp_path / "absent" / "a.npz")


def test_saved_file_gives_the_same_calibration_and_the_same_bytes(tmp_path):
    calibration = small_calibration()
    calibration.save(tmp_path / "a.npz")
    calibration.save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    loaded = Calibration.load(tmp_path / "a.npz")
    assert np.array_equal(loaded.bp_design, calibration.bp_design)
    assert np.array_equal(loaded.rp_design, calibration.rp_design)
    assert (loaded.release, loaded.instrument_model) == ("test", "none")
    assert (loaded.bp_basis_function_id, loaded.rp_basis_function_id) == (1, 2)
    assert (loaded.n_bp, loaded.n_rp) == (3, 2)


def test_arrays_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        Calibration.default().bp_design[0, 0] = 1.0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bp_design", np.ones((60, 3))),
        ("rp_design", np.ones(61)),
        ("rp_design", np.full((61, 2), np.nan)),
        ("wavelength", np.full(61, np.inf)),
        ("bp_basis_function_id", 1.5),
        ("rp_basis_function_id", "57"),
        ("rp_basis_function_id", np.array([57])),
    ],
)
def test_impossible_arrays_are_refused(field, value):
    with pytest.raises(InputError, match=field):
        small_calibration(**{field: value})


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.npz"):
        Calibration.load(tmp_path / "nothing.npz")
    (tmp_path / "garbage.npz").write_bytes(b"no numbers here")
    with pytest.raises(InputError, match=r"garbage\.npz: not a readable calibration file \(no npz\)"):
        Calibration.load(tmp_path / "garbage.npz")
    np.savez(tmp_path / "other.npz", release=np.array("x"))
    with pytest.raises(InputError, match=r"other\.npz"):
        Calibration.load(tmp_path / "other.npz")
    small_calibration().save(tmp_path / "whole.npz")
    whole = (tmp_path / "whole.npz").read_bytes()
    for place in (len(whole) // 3, len(whole) - 100):
        (tmp_path / "cut.npz").write_bytes(whole[:place])
        with pytest.raises(InputError, match=r"cut\.npz: not a readable calibration file"):
            Calibration.load(tmp_path / "cut.npz")
    damaged = bytearray(whole)
    damaged[whole.index(b"bp_design.npy") + 400] ^= 1
    (tmp_path / "damaged.npz").write_bytes(damaged)
    with pytest.raises(InputError, match=r"damaged\.npz: not a readable calibration file"):
        Calibration.load(tmp_path / "damaged.npz")
