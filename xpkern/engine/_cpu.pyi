from collections.abc import Sequence
from typing import Any

from numpy import bool_, float32, float64, int32, int64, uint32
from numpy.typing import NDArray

CONSTANTS: dict[str, float]
STATUS: dict[str, int]
STARS_SIDE_BY_SIDE: int

class Model:
    def __init__(
        self,
        weights: Sequence[NDArray[float64]],
        biases: Sequence[NDArray[float64]],
        ext_curve: NDArray[float64],
        input_zp: NDArray[float64],
        input_scale: NDArray[float64],
    ) -> None: ...

class Prior:
    def __init__(self, log_weight: NDArray[float64], mean: NDArray[float64], root: NDArray[float64]) -> None: ...

class Grid:
    def __init__(
        self,
        rows: NDArray[float32],
        basis: NDArray[float32],
        inverse: NDArray[float32],
        mean: NDArray[float32],
        window: NDArray[int32],
        reach: NDArray[float32],
        apart: NDArray[float32],
    ) -> None: ...

class Candidates:
    def __init__(
        self,
        types: NDArray[float64],
        ext: NDArray[float64],
        base_flux: NDArray[float64],
        ext_curve: NDArray[float64],
        penalty: NDArray[float64],
        window: NDArray[int32],
        mean_of_ratios: bool,
        score_parallax: bool,
        plx_lower: float,
        plx_upper: float,
    ) -> None: ...

class ModelError:
    def __init__(
        self,
        centre: NDArray[float64],
        scale: NDArray[float64],
        covariance: NDArray[float64],
        archive_factor: float,
    ) -> None: ...

def confidence(
    isa: str,
    features: NDArray[float32],
    centre: NDArray[float32],
    inverse_scale: NDArray[float32],
    fill: NDArray[float32],
    weights: Sequence[NDArray[float32]],
    biases: Sequence[NDArray[float32]],
    largest: float,
    threads: int,
) -> NDArray[float32]: ...
def prior_curvature(isa: str, prior: Prior, theta: NDArray[float64], threads: int) -> NDArray[float64]: ...
def freeze_noise(
    isa: str,
    model: Model,
    error: ModelError,
    independent: NDArray[float64],
    common: NDArray[float64],
    flux: NDArray[float32],
    whitener: NDArray[float32],
    blocks: tuple[int, int, int],
    params: NDArray[float64],
    threads: int,
) -> tuple[NDArray[float32], NDArray[float64]]: ...
def predict(isa: str, model: Model, params: NDArray[float64], threads: int) -> NDArray[float64]: ...
def evaluate(
    isa: str,
    model: Model,
    prior: Prior,
    flux: NDArray[float32],
    whitener: NDArray[float32],
    mean: NDArray[float64],
    sigma: NDArray[float64],
    params: NDArray[float64],
    terms: dict[str, bool],
    threads: int,
) -> dict[str, NDArray[float64]]: ...
def start(
    isa: str,
    grid: Grid,
    flux: NDArray[float32],
    whitener: NDArray[float32],
    mean: NDArray[float64],
    sigma: NDArray[float64],
    starts: int,
    gate: float,
    threads: int,
) -> NDArray[float64]: ...
def fit(
    isa: str,
    model: Model,
    prior: Prior,
    flux: NDArray[float32],
    whitener: NDArray[float32],
    mean: NDArray[float64],
    sigma: NDArray[float64],
    blocks: tuple[int, int, int],
    grid: Grid | None,
    start: NDArray[float64] | None,
    terms: dict[str, bool],
    lower: NDArray[float64],
    upper: NDArray[float64],
    max_iterations: int,
    tolerance: float,
    starts: int,
    gate: float,
    threads: int,
) -> dict[str, NDArray[Any]]: ...
def search(
    isa: str,
    grid: Candidates,
    flux: NDArray[float32],
    whitener: NDArray[float32],
    mean: NDArray[float64],
    sigma: NDArray[float64],
    threads: int,
) -> NDArray[float64]: ...
def descend(
    isa: str,
    model: Model,
    prior: Prior,
    flux: NDArray[float32],
    whitener: NDArray[float32],
    mean: NDArray[float64],
    sigma: NDArray[float64],
    start: NDArray[float64],
    terms: dict[str, bool],
    lower: NDArray[float64],
    upper: NDArray[float64],
    adam: bool,
    steps: int,
    rate: float,
    decay: float,
    decay_every: int,
    clip: float,
    threads: int,
) -> NDArray[float64]: ...
def rows_of_groups(groups: NDArray[float32], stars: NDArray[int64]) -> NDArray[float32]: ...
def group_rows(rows: NDArray[float32]) -> None: ...
def train_step(
    isa: str,
    model: Model,
    flux: NDArray[float32],
    whitener: NDArray[float32],
    mean: NDArray[float64],
    sigma: NDArray[float64],
    params: NDArray[float64],
    threads: int,
) -> tuple[float, NDArray[float64]]: ...
def train_epoch(
    isa: str,
    model: Model,
    flux: NDArray[float32],
    whitener: NDArray[float32],
    mean: NDArray[float64],
    sigma: NDArray[float64],
    params: NDArray[float64],
    batches: NDArray[int64],
    terms: dict[str, bool],
    lower: NDArray[float64],
    upper: NDArray[float64],
    model_rates: NDArray[float64] | None,
    adam: bool,
    momentum: float,
    model_clip: float,
    star_rates: NDArray[float64] | None,
    star_clip: float,
    first: NDArray[float64],
    second: NDArray[float64],
    count: int,
    threads: int,
) -> dict[str, Any]: ...
def calibration_plan(bp_design: NDArray[float64], rp_design: NDArray[float64]) -> dict[str, Any]: ...
def calibrate(
    isa: str,
    bp_design: NDArray[float64],
    rp_design: NDArray[float64],
    bp: NDArray[float64],
    rp: NDArray[float64],
    bp_error: NDArray[float32],
    rp_error: NDArray[float32],
    bp_correlation: NDArray[float32],
    rp_correlation: NDArray[float32],
    bp_standard_deviation: NDArray[float32],
    rp_standard_deviation: NDArray[float32],
    has_bp: NDArray[bool_],
    has_rp: NDArray[bool_],
    band_flux: NDArray[float64],
    band_error: NDArray[float64],
    independent: NDArray[float64],
    common: float,
    bp_fraction: float,
    rp_fraction: float,
    floor: float,
    unit_variance: bool,
    threads: int,
) -> tuple[NDArray[float32], NDArray[float32], NDArray[uint32]]: ...
def invert_information(
    isa: str, information: NDArray[float64], threads: int
) -> tuple[NDArray[float64], NDArray[float64], NDArray[bool_]]: ...
def instruction_sets() -> list[str]: ...
def multiply_add_peak(isa: str, count: int) -> float: ...
