"""How good classifiers of confidence are on held-out simulated stars with planted faults, and how fast."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import xpkern as xk
from bench.harness import Contestant, compare, measure_once, null_run
from bench.peak import fma_peak
from bench.peers.mlp_confidence import jax_networks, sklearn_networks
from bench.result import Result
from bench.stars import SEED
from xpkern.catalog.judgement import JUDGED_BY, features_of, judge
from xpkern.catalog.stream import CatalogReader
from xpkern.engine.confidence import confidences
from xpkern.engine.contract import Float64
from xpkern.model.confidence import Confidence
from xpkern.observe.gaia_source import share_of
from xpkern.survey.planted import CLASSES, Planted
from xpkern.train.confidence import HELD_OUT, SPLIT_SEED, labelled_fits, train_confidence
from xpkern.train.labels import Labels, read_labels
from xpkern.train.relu_network import NetworkSettings

#: Where true spectra come from: atmospheres that the shipped model does not know exactly, as stars are.
TRUTH = "kurucz"

#: More of each fault than usual, so that held-out stars tell of each.
PLANTED = Planted(binary=0.2, blend=0.05, white_dwarf=0.01, quasar=0.01, galaxy=0.01, varied_rv=0.2)

#: Errors of the labels [kK, dex, dex].
LABEL_ERROR = np.array([0.05, 0.05, 0.05])

#: As the paper's but for the patience, which is for millions of stars.
SETTINGS = NetworkSettings(plateau=16, patience=40, epochs=160)

#: Stars that the networks are timed with: more than a cache holds.
TIMED_STARS = 1 << 16


def multiply_adds(classifiers: Confidence) -> int:
    """Fused multiply-adds of the confidences of one star."""
    weights = classifiers.weights
    return sum(weight.shape[0] * weight.shape[1] * weight.shape[2] for weight in weights)


def bench_confidence(n_stars: int, rounds: int, engine_name: str) -> Result:
    """Confidences: AUC, calibration and scatter of held-out stars, and speed, against JAX and scikit-learn."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        xk.simulate_survey(
            folder / "survey", n_stars, seed=SEED, truth=TRUTH, planted=PLANTED, format="hdf5", threads=1
        )
        model, prior = xk.load_model()
        spectra = sorted((folder / "survey").glob("Xp*.h5"))
        catalog, source = folder / "catalog.h5", folder / "survey" / "gaia_source.fits"
        xk.make_catalog(spectra, catalog, gaia_source=source, model=model, prior=prior, engine=engine_name, threads=1)
        kinds, labels = labels_of_truth(folder / "survey" / "truth.fits")
        trained = train_confidence(labelled_fits(catalog, labels, model, prior), model, settings=SETTINGS)
        (diagnostics,) = CatalogReader(catalog, table="diagnostics").blocks(["source_id", *JUDGED_BY], rows=n_stars)

    extra: dict[str, Any] = {"stars": n_stars, "truth": TRUTH} | {
        f"stars: {condition}": count for condition, count in trained.counts.items()
    }
    for report in trained.reports:
        said = report.as_dict()
        extra |= {f"{report.parameter}: held-out {kind}": count for kind, count in report.held_out.items()}
        extra |= {
            f"{report.parameter}: {what}": said[key]
            for what, key in (
                ("ROC AUC", "roc_auc"),
                ("precision-recall AUC of good ones", "precision_recall_auc"),
                ("precision-recall AUC of bad ones", "bad_precision_recall_auc"),
                ("calibration error", "calibration_error"),
                ("calibration error before recalibration", "calibration_error_before"),
                ("share confident", "confident"),
                ("68 % of confident ones are within [kK, dex]", "scatter_confident"),
                ("68 % of unsure ones are within [kK, dex]", "scatter_unsure"),
                ("factor between them", "scatter_factor"),
                ("epochs to the network that was kept", "epochs"),
            )
        }
        extra[f"{report.parameter}: most important"] = ", ".join(list(report.importance)[:3])
    judged = judge(diagnostics, trained.classifiers, prior)
    extra |= by_class(diagnostics["source_id"], judged.quality_flags, kinds)

    classifiers = trained.classifiers
    features = np.resize(features_of(diagnostics), (TIMED_STARS, len(classifiers.features)))
    ours = Contestant("features -> confidences", lambda: confidences(classifiers, features), len(features))
    duels = []
    for peer, networks in (
        ("JAX, the same networks", jax_networks),
        ("scikit-learn MLPClassifier, the same networks", sklearn_networks),
    ):
        try:
            run = networks(classifiers, features)
        except ImportError as error:
            extra[peer] = str(error)
            continue
        duels.append(compare(ours, Contestant(peer, run, len(features)), rounds=rounds))
    whole = Contestant("companion -> flags", lambda: judge(diagnostics, classifiers, prior), len(judged.status))
    extra["companion columns -> features, confidences, flags [stars/s]"] = measure_once(whole, 5)
    rate = measure_once(ours, 5)
    engine = xk.get_engine("cpu")
    peak, flops = fma_peak(getattr(engine, "instruction_set", "scalar")), 2 * multiply_adds(classifiers)
    extra |= {
        "floating-point operations a star": flops,
        "peak of the core [GFLOP/s]": peak,
        "floor [us a star]": 1e-3 * flops / peak,
        "share of the peak": 1e-9 * flops * rate / peak,
    }
    return Result("confidence", "stars/s", duels, null_run(ours, rounds=rounds), extra)


def labels_of_truth(path: Path) -> tuple[dict[int, str], Labels]:
    """Class of each source of a survey by its number, and labels of all that have a type, with errors."""
    from astropy.table import Table

    truth = Table.read(path)
    rng = np.random.default_rng(SEED)
    source_id, first = np.unique(np.asarray(truth["source_id"]), return_index=True)
    theta = np.column_stack([np.asarray(truth[name], np.float64)[first] for name in ("teff", "feh", "logg")])
    theta[:, 0] /= 1000.0
    measured = theta + LABEL_ERROR * rng.standard_normal(theta.shape)
    known = np.isfinite(measured).all(axis=1)
    columns: dict[str, Any] = {"source_id": source_id[known]}
    for k, name in enumerate(("teff", "feh", "logg")):
        columns |= {name: measured[known, k], f"{name}_err": np.full(int(known.sum()), LABEL_ERROR[k])}
    kinds = [str(kind).strip() for kind in np.asarray(truth["class"]).astype(str)[first]]
    return dict(zip(source_id.tolist(), kinds, strict=True)), read_labels(columns)


def by_class(source_id: np.ndarray, flags: np.ndarray, kinds: dict[int, str]) -> dict[str, Float64]:
    """Share of each class's held-out sources that pass the basic cut, and that are confident in everything besides."""
    of = np.array([kinds[number] for number in source_id.tolist()])
    held_out = share_of(source_id, SPLIT_SEED) < HELD_OUT
    shares = {}
    for kind in CLASSES:
        members = held_out & (of == kind)
        if members.any():
            shares[f"{kind}: pass the basic cut, share"] = (flags[members] < 8).mean()
            shares[f"{kind}: and confident in all, share"] = (flags[members] == 0).mean()
    return {name: float(share) for name, share in shares.items()}
