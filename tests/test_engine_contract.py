"""Every engine has the operations of the protocol, with the same arguments, defaults and annotations."""

from __future__ import annotations

import inspect

import pytest

import xpkern as xk
from xpkern.engine import _MAKERS, Engine, available_engines, get_engine

OPERATIONS = [name for name, value in vars(Engine).items() if inspect.isfunction(value) and not name.startswith("_")]


def test_the_protocol_names_the_operations_of_the_design():
    assert OPERATIONS == [
        "calibrate",
        "freeze_noise",
        "prior_curvature",
        "predict",
        "evaluate",
        "start",
        "fit",
        "invert_information",
        "search",
        "descend",
        "train_step",
        "train_epoch",
    ]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_signature_is_that_of_the_protocol(engine, operation):
    # annotations are strings (from __future__ import annotations), so this compares arguments, defaults and annotations
    assert inspect.signature(getattr(type(engine), operation)) == inspect.signature(getattr(Engine, operation))


def test_engines_have_no_public_operations_of_their_own(engine):
    public = {
        name for name, value in vars(type(engine)).items() if inspect.isfunction(value) and not name.startswith("_")
    }
    assert public == set(OPERATIONS)


def test_every_engine_is_available_or_says_why_not():
    reasons = available_engines()
    assert set(reasons) == set(_MAKERS)
    assert reasons["reference"] is None
    assert all(reason is None or reason for reason in reasons.values())


def test_get_engine(monkeypatch):
    assert get_engine("reference").name == "reference"
    engine = get_engine("reference")
    assert get_engine(engine) is engine
    with pytest.raises(xk.InputError, match="'gpu' is none of auto, cuda, cpu, reference"):
        get_engine("gpu")

    def missing() -> Engine:
        raise ImportError("the extension was not built")

    for name in ("cuda", "cpu"):
        monkeypatch.setitem(_MAKERS, name, missing)
    assert available_engines()["cpu"] == "the extension was not built"
    for name in ("auto", "cpu"):
        with pytest.raises(xk.InputError, match=r"the extension was not built.*'reference'"):
            get_engine(name)
