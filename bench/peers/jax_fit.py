"""The star loss and its minimum by Levenberg-Marquardt in JAX: what a good Python programmer gets out of XLA.

Written for speed on one core: everything is compiled, in float32 and batched over stars; slopes are forward tangents,
so that the network is four times as many rows of the same matrix products; a whitener is a dense triangle, transposed
and laid out before the clock starts, because XLA multiplies batches of matrices fastest that way; and after a few steps
the stars that have not converged are gathered into full batches again. It shares no code with xpkern.

Coordinates are y = (teff, feh, logg, ext, ln plx), as in xpkern: fewer steps than with ln ext.
"""

from __future__ import annotations

import os

import numpy as np
from sklearn.cluster import KMeans

import xpkern as xk

#: What keeps XLA on one core, as xpkern is. It is read when JAX is first imported.
FLAGS = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

try:
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU is shared with whoever is compared
    import jax
    import jax.numpy as jnp
except ImportError as error:  # the peer is an extra of the benchmarks, not of xpkern
    raise ImportError(
        "this peer needs JAX: pip install 'xpkern[bench]' (or pip install jax); the other benchmarks do without"
    ) from error

#: Stars of a batch on a CPU: what is computed for them stays in the second and third level of the cache. A GPU wants
#: all of them at once, and products in full single precision (its default halves the digits, and steps fail).
BATCH = 256
jax.config.update("jax_default_matmul_precision", "highest")

#: Parts of a batch that the last one of a round may be, of which the smallest that suffices is used; each is compiled
#: once.
LAST_BATCH = (8, 4, 2, 1)

#: Steps before the stars that have not converged are gathered anew.
STEPS = (7, 3, 5, 8, 16)

#: Most searches of a star with several starts, and how much worse than the best one a start's score may be.
STARTS, GATE = 8, 100.0

#: Converged when the predicted drop of the loss is below this, times max(1, loss / 100): float32 cannot tell better.
TOLERANCE = 1e-3

#: Variance of a sample that is missing: no weight to speak of.
MISSING = 1e20

#: Damping, relative to the diagonal: at first, after a good step, after a bad one.
DAMPING, DOWN, UP = 1e-3, 0.1, 20.0

#: Bounds of ext and plx, and the largest step in y.
EXT_BOUNDS, PLX_BOUNDS = (1e-6, 15.0), (1e-4, 1e3)
LONGEST_STEP = np.array([1.0, 1.0, 1.0, 1.0, 1.5], np.float32)

#: Grid of the start: extinctions for every type; samples of a band; what is not trusted of bands and of parallaxes.
N_TYPES, EXTINCTIONS = 32, np.geomspace(0.02, 3.0, 10)
SAMPLES_PER_BAND, BAND_ERROR, PLX_SOFTENING = 5, 0.05, 0.1


class Stars:
    """Stars as the kernels take them, in batches where XLA wants its arrays; made outside the time that counts.

    Parameters
    ----------
    flux : (n, 66)
    whitener : (n, 66, 66)
        Lower triangular T with T^T T = C^-1; a missing sample has a zero row and column.
    plx, plx_err : (n,)
        [mas]; the error is inf where there is no parallax.
    batch : int
        Stars of a batch.
    """

    def __init__(
        self, flux: np.ndarray, whitener: np.ndarray, plx: np.ndarray, plx_err: np.ndarray, batch: int = BATCH
    ) -> None:
        self.batch = batch
        variance = np.full(flux.shape, MISSING)
        for star, root in enumerate(whitener.astype(np.float64)):
            kept = np.flatnonzero(np.diagonal(root))
            variance[star, kept] = np.square(np.linalg.inv(root[np.ix_(kept, kept)])).sum(axis=1)
        arrays = (flux, variance, whitener.transpose(0, 2, 1), plx, np.square(1 / plx_err))
        self.arrays = [np.ascontiguousarray(array, np.float32) for array in arrays]
        # a GPU gathers from its own memory
        self._resident = [jnp.asarray(array) for array in self.arrays] if on_gpu() else None
        self.batches = [self.gather(rows) for rows in _in_batches(np.arange(len(flux)), batch)]

    def __len__(self) -> int:
        return len(self.arrays[0])

    def gather(self, rows: np.ndarray) -> list[jax.Array]:
        """Return some stars: flux, variance (the diagonal of C), transposed whitener, parallax and 1 / error^2."""
        if self._resident is not None:
            return [array[jnp.asarray(rows)] for array in self._resident]
        return [jnp.asarray(array[rows]) for array in self.arrays]


class JaxFit:
    """Fits stars of one model; compiles on its first call.

    Parameters
    ----------
    model : FluxModel
    prior : TypePrior
    """

    def __init__(self, model: xk.FluxModel, prior: xk.TypePrior) -> None:
        constants, grid = _constants(model, prior), _grid(model, prior)
        self._start = jax.jit(lambda *data: _start(grid, *data))
        self._starts = jax.jit(lambda *data: _starts(grid, *data))
        self._begin = jax.jit(lambda y, *data: _begin(constants, y, *data))
        self._advance = jax.jit(lambda steps, state, *data: _advance(steps, constants, state, *data))

    def start(self, stars: Stars) -> np.ndarray:
        """Starts from the grid, as y (n, 5) float32."""
        return np.concatenate([self._start(*data) for data in stars.batches])[: len(stars)]

    def run(self, stars: Stars, start: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Minimise the loss.

        Parameters
        ----------
        stars : Stars
        start : (n, 5) float32, optional
            In y; from the grid when not given.

        Returns
        -------
        params : (n, 5) float64
            Linear parameters.
        loss : (n,) float32
        fisher : (n, 5, 5) float64
            In the linear parameters.
        """
        first = [
            self._begin(self._start(*data) if start is None else start[rows], *data)
            for data, rows in zip(stars.batches, _in_batches(np.arange(len(stars)), stars.batch), strict=True)
        ]
        ended = [self._advance(STEPS[0], state, *data) for state, data in zip(first, stars.batches, strict=True)]
        return self._finish(_joined(ended, len(stars)), stars, np.arange(len(stars)))

    def run_from_several(self, stars: Stars) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same from up to ``STARTS`` types of the grid, those whose score is within ``GATE`` of the best one's."""
        found = [self._starts(*data) for data in stars.batches]
        y, score = (np.concatenate(part)[: len(stars)] for part in zip(*found, strict=True))
        star, choice = np.nonzero(score <= score[:, :1] + GATE)
        ended = []
        for rows in _in_batches(np.arange(len(star)), stars.batch):
            data = stars.gather(star[rows])
            ended.append(self._advance(STEPS[0], self._begin(y[star[rows], choice[rows]], *data), *data))
        params, loss, fisher = self._finish(_joined(ended, len(star)), stars, star)
        order = np.lexsort((loss, star))
        best = order[np.unique(star[order], return_index=True)[1]]
        return params[best], loss[best], fisher[best]

    def _finish(
        self, state: list[np.ndarray], stars: Stars, star: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Further steps of the searches (of some stars) that have not converged, and what :meth:`run` returns."""
        for steps in STEPS[1:]:
            active = np.flatnonzero(~state[-1])
            if not len(active):
                break
            ended = [
                self._advance(steps, tuple(array[rows] for array in state), *stars.gather(star[rows]))
                for rows in _in_batches(active, stars.batch)
            ]
            for array, new in zip(state, _joined(ended, len(active)), strict=True):
                array[active] = new
        y, _, loss, _, _, information, _ = state
        params = y.astype(np.float64)
        params[:, 4] = np.exp(params[:, 4])
        slope = np.ones_like(params)
        slope[:, 4] = params[:, 4]
        fisher = information / (slope[:, :, None] * slope[:, None, :])
        fisher[:, 4, 4] += stars.arrays[4][star]
        return params, loss, fisher


def on_gpu() -> bool:
    """Whether JAX computes on a GPU."""
    return jax.devices()[0].platform == "gpu"


def _in_batches(rows: np.ndarray, batch: int) -> list[np.ndarray]:
    """Cut into batches, the last one filled up with its last star."""
    whole = len(rows) - len(rows) % batch
    batches = list(rows[:whole].reshape(-1, batch))
    if rest := len(rows) - whole:
        size = min(batch // part for part in LAST_BATCH if batch // part >= rest)
        batches.append(np.concatenate([rows[whole:], np.full(size - rest, rows[-1])]))
    return batches


def _joined(batches: list, size: int) -> list[np.ndarray]:
    """Join the states of batches, without the stars that filled the last one up."""
    return [np.concatenate(arrays)[:size] for arrays in zip(*batches, strict=True)]


def _constants(model: xk.FluxModel, prior: xk.TypePrior) -> dict:
    """Return what the loss needs of model and prior, float32."""
    precision = np.linalg.inv(prior.covariances)
    _, log_determinant = np.linalg.slogdet(prior.covariances)
    rows, columns = np.triu_indices(3)
    constants = {
        "weights": [*model.weights],
        "biases": [*model.biases],
        "ext_curve": model.ext_curve,
        "input_zp": model.input_zp,
        "input_scale": model.input_scale,
        "log_weight": np.log(prior.weights) - 0.5 * log_determinant - 1.5 * np.log(2 * np.pi),
        "means": prior.means.T,
        "precision": precision.transpose(1, 2, 0),
        "pulled_mean": np.einsum("kij,kj->ik", precision, prior.means),
        "precision_entries": precision[:, rows, columns],
        "lower": np.array([*prior.support()[0], EXT_BOUNDS[0], np.log(PLX_BOUNDS[0])]),
        "upper": np.array([*prior.support()[1], EXT_BOUNDS[1], np.log(PLX_BOUNDS[1])]),
    }
    return jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), constants)


def _grid(model: xk.FluxModel, prior: xk.TypePrior) -> dict:
    """Candidates of the start: draws from the prior times extinctions, as mean fluxes of broad bands at 1 mas."""
    draws = prior.sample(128 * N_TYPES, np.random.default_rng(1))
    unit = draws.std(axis=0)
    types = KMeans(N_TYPES, n_init=1, random_state=1).fit(draws / unit).cluster_centers_ * unit
    params = np.ones((N_TYPES * len(EXTINCTIONS), 5))
    params[:, :3] = np.repeat(types, len(EXTINCTIONS), axis=0)
    params[:, 3] = np.tile(EXTINCTIONS, N_TYPES)
    spectrum = int((model.wavelength < 1050).sum())
    parts = np.array_split(np.arange(spectrum), spectrum // SAMPLES_PER_BAND) + [
        np.array([sample]) for sample in range(spectrum, len(model.wavelength))
    ]
    mean = np.zeros((len(model.wavelength), len(parts)))
    for band, part in enumerate(parts):
        mean[part, band] = 1 / len(part)
    grid = {
        "y": np.column_stack([params[:, :4], np.zeros(len(params))]),
        "flux": np.exp(model.ln_flux(params)) @ mean,
        "twice_ln_prior": 2 * prior.ln_density(params[:, :3]),
        "mean": mean,
    }
    return jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), grid)


def _score(grid, flux, variance, plx, plx_precision):
    """Scores and squared parallaxes (n, c): chi^2 of bands, parallax from the flux, prior, measured parallax."""
    observed = flux @ grid["mean"]
    spread = variance @ grid["mean"] + (BAND_ERROR * observed) ** 2
    weight = 1 / spread
    squared = weight @ (grid["flux"] ** 2).T
    crossed = (weight * observed) @ grid["flux"].T
    scale = jnp.clip(crossed / squared, PLX_BOUNDS[0] ** 2, PLX_BOUNDS[1] ** 2)
    candidate_plx = jnp.sqrt(scale)
    score = scale * (scale * squared - 2 * crossed) - grid["twice_ln_prior"]
    precision = plx_precision[:, None]
    score += precision * (candidate_plx - plx[:, None]) ** 2 / (1 + precision * PLX_SOFTENING**2 * scale)
    return score, scale


def _start(grid, flux, variance, _whitener, plx, plx_precision):
    """Return the best candidate (n, 5)."""
    score, scale = _score(grid, flux, variance, plx, plx_precision)
    # a scalar loop for argmin, vector loops for this
    best = jnp.where(score == score.min(axis=1, keepdims=True), jnp.arange(score.shape[1]), 0).max(axis=1)
    ln_plx = 0.5 * jnp.log(jnp.take_along_axis(scale, best[:, None], axis=1))
    return grid["y"][best].at[:, 4].set(ln_plx[:, 0])


def _starts(grid, flux, variance, _whitener, plx, plx_precision):
    """Return the best candidates of the best types (n, STARTS, 5), and their scores in ascending order (n, STARTS)."""
    score, scale = _score(grid, flux, variance, plx, plx_precision)
    of_type = score.reshape(-1, N_TYPES, len(EXTINCTIONS))
    ext = of_type.argmin(axis=2)
    negative, types = jax.lax.top_k(-of_type.min(axis=2), STARTS)
    best = types * len(EXTINCTIONS) + jnp.take_along_axis(ext, types, axis=1)
    ln_plx = 0.5 * jnp.log(jnp.take_along_axis(scale, best, axis=1))
    return grid["y"][best].at[:, :, 4].set(ln_plx), -negative


def _evaluate(c, y, flux, variance, whitener, plx, plx_precision):
    """Return loss (n,), half its gradient (n, 5), and two (n, 5, 5): half the step's matrix, and J^T C^-1 J."""
    n, theta, ext, distance = len(y), y[:, :3], y[:, 3], jnp.exp(y[:, 4])
    # the network: row 0 of the four is the value, the others are its slopes
    value = (theta - c["input_zp"]) / c["input_scale"] @ c["weights"][0] + c["biases"][0]
    slope = jnp.broadcast_to((c["weights"][0] / c["input_scale"][:, None])[None], (n, 3, value.shape[1]))
    for weight, bias in zip(c["weights"][1:], c["biases"][1:], strict=True):
        hidden = jnp.tanh(value)
        stacked = jnp.concatenate([hidden[:, None], slope * (1 - hidden * hidden)[:, None]], axis=1)
        stacked = (stacked.reshape(4 * n, -1) @ weight).reshape(n, 4, -1)
        value, slope = stacked[:, 0] + bias, stacked[:, 1:]
    model = jnp.exp(value - ext[:, None] * c["ext_curve"]) * (distance * distance)[:, None]
    of_ext, of_plx = jnp.broadcast_to(-c["ext_curve"], model.shape), jnp.full_like(model, 2.0)
    columns = jnp.concatenate(
        [slope * model[:, None], (of_ext * model)[:, None], (of_plx * model)[:, None], (model - flux)[:, None]], axis=1
    )
    whitened = columns @ whitener
    normal = (whitened[:, :, None] * whitened[:, None]).sum(axis=3)
    # the mixture of the prior
    pull = [theta @ c["precision"][i] - c["pulled_mean"][i] for i in range(3)]  # each (n, components)
    exponent = c["log_weight"] - 0.5 * sum((theta[:, i, None] - c["means"][i]) * pull[i] for i in range(3))
    top = exponent.max(axis=1, keepdims=True)
    share = jnp.exp(exponent - top)
    total = share.sum(axis=1, keepdims=True)
    share = share / total
    ln_prior = top[:, 0] + jnp.log(total[:, 0])
    prior_slope = jnp.stack([(share * part).sum(axis=1) for part in pull], axis=1)
    p = share @ c["precision_entries"]
    difference = distance - plx
    loss = normal[:, 5, 5] + plx_precision * difference**2 - 2 * (ln_prior + jnp.log(ext) + y[:, 4])
    gradient = normal[:, :5, 5] + jnp.concatenate(
        [prior_slope, -1 / ext[:, None], (plx_precision * difference * distance - 1)[:, None]], axis=1
    )
    zero = jnp.zeros(n)
    added = jnp.stack(
        [p[:, 0], p[:, 1], p[:, 2], zero, zero,
         p[:, 1], p[:, 3], p[:, 4], zero, zero,
         p[:, 2], p[:, 4], p[:, 5], zero, zero,
         zero, zero, zero, 1 / ext**2, zero,
         zero, zero, zero, zero, plx_precision * distance**2],
        axis=1,
    ).reshape(n, 5, 5)  # fmt: skip
    information = normal[:, :5, :5]
    return loss, gradient, information + added, information


def _solve(matrix, rhs):
    """Solve positive definite systems (n, 5, 5) by Cholesky, written out: a vector instruction does many stars."""
    size = rhs.shape[1]
    factor = [[None] * size for _ in range(size)]
    forward = []
    for j in range(size):
        pivot = matrix[:, j, j] - sum((factor[j][i] ** 2 for i in range(j)), start=0.0)
        inverse = jax.lax.rsqrt(jnp.maximum(pivot, 1e-7 * matrix[:, j, j]))
        for k in range(j + 1, size):
            dot = sum((factor[j][i] * factor[k][i] for i in range(j)), start=0.0)
            factor[k][j] = (matrix[:, k, j] - dot) * inverse
        factor[j][j] = inverse
        forward.append((rhs[:, j] - sum((factor[j][i] * forward[i] for i in range(j)), start=0.0)) * inverse)
    solution = [None] * size
    for j in reversed(range(size)):
        dot = sum((factor[k][j] * solution[k] for k in range(j + 1, size)), start=0.0)
        solution[j] = (forward[j] - dot) * factor[j][j]
    return jnp.stack(solution, axis=1)


def _begin(c, y, *data):
    """Return the state at the start: y, damping, loss, half gradient, half matrix, J^T C^-1 J, whether converged."""
    y = jnp.clip(y, c["lower"], c["upper"])
    return y, jnp.full(len(y), DAMPING), *_evaluate(c, y, *data), jnp.zeros(len(y), bool)


def _advance(steps, c, state, *data):
    """Take up to ``steps`` steps of Levenberg-Marquardt with all stars of a batch that have not converged."""

    def step(carry):
        number, (y, damping, loss, gradient, matrix, information, converged) = carry
        edge = ((y <= c["lower"]) & (gradient > 0)) | ((y >= c["upper"]) & (gradient < 0))
        pushed = jnp.where(edge, 0.0, gradient)
        damped = matrix * (1 + damping[:, None, None] * jnp.eye(5))
        change = -_solve(damped, pushed)
        drop = -(pushed * change).sum(axis=1)
        proposed = y + jnp.clip(change, -LONGEST_STEP, LONGEST_STEP)
        proposed = proposed.at[:, 3].max(0.5 * y[:, 3])
        proposed = jnp.clip(proposed, c["lower"], c["upper"])
        trial = (proposed, damping * DOWN, *_evaluate(c, proposed, *data))
        kept = (y, damping * UP, loss, gradient, matrix, information)
        lower = trial[2] < loss
        now = [
            _where(converged, old, _where(lower, new, same))
            for old, new, same in zip((y, damping, loss, gradient, matrix, information), trial, kept, strict=True)
        ]
        small = (drop < TOLERANCE * jnp.maximum(1, 0.01 * loss)) & (damping <= 1)
        return number + 1, (*now, converged | small)

    _, state = jax.lax.while_loop(lambda carry: (carry[0] < steps) & ~carry[1][-1].all(), step, (0, state))
    return state


def _where(condition, chosen, other):
    return jnp.where(condition.reshape(-1, *(1,) * (chosen.ndim - 1)), chosen, other)
