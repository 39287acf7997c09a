"""Sweeps, placebos and training on several processes and on real Dask and Ray clusters of two workers: the same bits, and nothing lost when one is killed."""
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from joblib import parallel_config

from vpoc_backtest.backtest import BacktestConfig, run_backtest
from vpoc_backtest.data import ES, add_sessions, random_walk
from vpoc_backtest.evidence import placebo_test
from vpoc_backtest.parallel import map_parallel
from vpoc_backtest.setups import study_setups
from vpoc_backtest.signals import SignalRules, make_signals
from vpoc_backtest.sweeps import StudyConfig, SweepContext, sweep
from vpoc_backtest.vpoc import session_levels

PLAIN = SignalRules(rule='migration')
GRID = {'window': (5, 10, 15), 'stop_volatility': (.3, .6), 'slippage_ticks': (0, 2)}


@pytest.fixture(scope='module')
def market(): return add_sessions(random_walk(90, bars_per_session=13, seed=4))


@pytest.fixture(scope='module')
def alone(market): return sweep(market, GRID, PLAIN), placebo_test(market, PLAIN, n=11).placebos


@pytest.fixture(scope='module')
def dask():
    distributed = pytest.importorskip('distributed')
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, host='127.0.0.1', dashboard_address=None) as cluster, distributed.Client(cluster): yield 'dask'


@pytest.fixture(scope='module')
def ray():
    ray = pytest.importorskip('ray')
    from ray.util.joblib import register_ray
    os.environ.update(RAY_AUTH_MODE='disabled', RAY_USAGE_STATS_ENABLED='0')
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80 * 2**20, _node_ip_address='127.0.0.1', log_to_driver=False)
    register_ray()
    yield 'ray'
    ray.shutdown()


@pytest.fixture(params=['loky', 'dask', 'ray'])
def config(request): return {'backend': 'loky', 'n_jobs': 2} if request.param == 'loky' else {'backend': request.getfixturevalue(request.param)}


def test_work_goes_to_two_workers(config):
    def where(part):  # within the test, so that workers that cannot import this file get it whole
        time.sleep(.05)
        return os.getpid()
    with parallel_config(**config): found = set(map_parallel(where, list(range(16))))
    assert len(found) == 2 and os.getpid() not in found


def test_the_same_bits(config, market, alone, tmp_path):
    with parallel_config(**config):
        pd.testing.assert_frame_equal(sweep(market, GRID, PLAIN, study=StudyConfig(part=3)), alone[0], check_exact=True)
        pd.testing.assert_frame_equal(sweep(market, GRID, PLAIN, study=StudyConfig(part=3, folder=tmp_path)), alone[0], check_exact=True)
        pd.testing.assert_frame_equal(placebo_test(market, PLAIN, n=11).placebos, alone[1], check_exact=True)
    assert len(list(tmp_path.glob('sweep-*/[!.]*.parquet'))) == 4 and len(list(tmp_path.glob('table-*.parquet'))) == 1


def test_claims_are_counted_alike(config, market):
    count = lambda: study_setups(market, nulls=('mirror', 'block'), n=11).table
    own = count()
    with parallel_config(**config): pd.testing.assert_frame_equal(count(), own, check_exact=True)


def test_one_process_is_this_one(config, market, alone):
    with parallel_config(**config):
        assert set(map_parallel(lambda part: os.getpid(), list(range(8)), jobs=1)) == {os.getpid()}
        pd.testing.assert_frame_equal(sweep(market, GRID, PLAIN, study=StudyConfig(part=3, jobs=1)), alone[0], check_exact=True)


def test_a_whole_run(config, market, monkeypatch, tmp_path):
    from vpoc_backtest import evidence
    from vpoc_backtest.ml_backtest import EvidenceConfig, _run_metrics, run_pipeline
    from vpoc_backtest.run_config import _NO_REJECTS, MarketData, RunConfig, _json
    judge = evidence._judge_placebos
    def note(of, seeds):
        (tmp_path/f'{os.getpid()}-{seeds[0]}').touch()
        return judge(of, seeds)
    def files():
        walk = MarketData('a random walk', 'made here', market, len(market), _NO_REJECTS, None, ES)
        run = run_pipeline(walk, RunConfig(rules=PLAIN), evidence=EvidenceConfig(placebos=19))
        return _json(_run_metrics(run)), run.results['original'].trades.to_csv(), run.evidence.nulls['drift'].placebos.to_csv(), run.evidence.swept.to_csv()
    own = files()
    monkeypatch.setattr(evidence, '_judge_placebos', note)
    with parallel_config(**config): assert files() == own
    told = [path.name.split('-') for path in tmp_path.iterdir()]
    assert {int(seed) for _, seed in told} == {0, 5, 10, 15} and str(os.getpid()) not in {pid for pid, _ in told}


def deadly(mark):
    "A rule whose worker is killed the first time a window of 10 is tried."
    def make(levels, rules):
        if rules.window == 10 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return make_signals(levels, rules)
    return make


def test_a_worker_is_killed(config, market, alone, tmp_path):
    with parallel_config(**config): swept = sweep(market, GRID, PLAIN, make=deadly(tmp_path/'killed'), study=StudyConfig(part=2, folder=tmp_path))
    assert (tmp_path/'killed').exists()
    pd.testing.assert_frame_equal(swept, alone[0], check_exact=True)


def test_an_error_of_the_work_is_told_at_once(config, market):
    def angry(levels, rules): raise ValueError(f'a window of {rules.window} is not to my liking')
    with parallel_config(**config), pytest.raises(ValueError, match='a window of 5 is not to my liking'): sweep(market, GRID, PLAIN, make=angry)


@pytest.fixture(scope='module')
def taught():
    "Samples, settings, and what one process makes of them."
    from vpoc_backtest.features import FilterConfig
    from vpoc_backtest.meta_labeling import filter_samples
    from vpoc_backtest.train import walk_forward
    bars = random_walk(320, bars_per_session=13, seed=6)
    few = FilterConfig(arch='mlp', first_sessions=160, step_sessions=40, members=3, epochs=3, hidden=(16,), garch=False)
    samples = filter_samples(bars, session_levels(bars), config=few)
    train = lambda: walk_forward(samples, few, device='cpu', seed=3)
    return train, train()


def test_walk_forward_spreads_out(config, taught):
    train, alone = taught
    with parallel_config(**config): found = train()
    # passes of another size may sum in another order: the last bits of a product depend on it, see 07_train
    pd.testing.assert_frame_equal(found.predictions, alone.predictions, rtol=1e-6, atol=1e-6)
    assert found.history['pass'].nunique() == 2 and alone.history['pass'].nunique() == 1


SWEEP = """
import sys, time
from pathlib import Path
from vpoc_backtest.data import add_sessions, random_walk
from vpoc_backtest.signals import SignalRules, make_signals
from vpoc_backtest.sweeps import StudyConfig, sweep

def slow(levels, rules):
    time.sleep(float(sys.argv[2]))
    return make_signals(levels, rules)

market = add_sessions(random_walk(90, bars_per_session=13, seed=4))
print(sweep(market, {'window': (5, 10, 15), 'stop_volatility': (.3, .6), 'slippage_ticks': (0, 2)}, SignalRules(rule='migration'), make=slow, study=StudyConfig(part=1, folder=sys.argv[1])).to_json())
"""


def test_a_sweep_that_was_killed_goes_on(alone, tmp_path):
    script, out = tmp_path/'slow.py', tmp_path/'out'
    script.write_text(SWEEP)
    parts = lambda: sorted(out.glob('sweep-*/[!.]*.parquet'))
    process = subprocess.Popen([sys.executable, script, out, '.3'])
    while len(parts()) < 3 and process.poll() is None: time.sleep(.02)
    process.kill()
    process.wait()
    finished = {p: p.stat().st_mtime_ns for p in parts()}
    assert 3 <= len(finished) < 12
    again = subprocess.run([sys.executable, script, out, '0'], capture_output=True, text=True, check=True)
    assert again.stdout.strip() == alone[0].to_json()
    assert {p: p.stat().st_mtime_ns for p in parts() if p in finished} == finished and len(parts()) == 12


def random_settings(rng):
    rules = SignalRules(rule=str(rng.choice(['trend', 'migration'])), window=int(rng.integers(3, 40)), min_r2=float(rng.choice([0, .2, .6])),
                        fast_volatility=int(rng.integers(2, 12)), slow_volatility=int(rng.integers(12, 60)), min_probability=float(rng.uniform(.3, .7)),
                        prior=(int(rng.integers(1, 3)), 1), min_confidence=float(rng.choice([0, 40, 60])), max_runs_p=float(rng.choice([1, 1, .2])),
                        min_streak=int(rng.choice([0, 0, 3])), stop_volatility=float(rng.uniform(.1, 2)), max_stop_share=float(rng.uniform(.2, 1)),
                        min_stop_ticks=int(rng.integers(1, 9)))
    config = BacktestConfig(initial_capital=float(rng.choice([1e5, 3e4, 2e3])), slippage_ticks=float(rng.choice([0, 1, 2.5])),
                            risk_per_trade=float(rng.choice([.01, .3, 1])), fees_per_contract=float(rng.choice([0, 2.25])), commission_per_trade=float(rng.choice([0, 10])),
                            limit_through=int(rng.integers(0, 3)), hold=str(rng.choice(['session', 'overnight'])), day_margin=float(rng.choice([.001, .1])),
                            ambiguous=str(rng.choice(['stop', 'path', 'target'])), max_contracts=int(rng.integers(1, 20)), risk_free_rate=float(rng.choice([0, .02])))
    return rules, config


@pytest.mark.parametrize('seed', range(4))
def test_figures_of_a_bench_are_those_of_the_backtest(seed):
    rng = np.random.default_rng(seed)
    bars = add_sessions(random_walk(300, bars_per_session=[390, 26, 6, 13][seed], seed=seed))
    bench, at, trades = SweepContext(bars), session_levels(bars), 0
    for rules, config in (random_settings(rng) for _ in range(40)):
        figures = bench.figures(bench.orders(rules), config)
        assert repr(figures) == repr(run_backtest(bars, make_signals(at, rules), config).metrics)
        trades += figures['trades']
    assert trades > 300
