"""The command as a user types it: its files, the same result twice, and what it prints when it fails."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import sketched, typed

from vpoc_backtest.data import _PRICES, ES, random_walk
from vpoc_backtest.features import make_features
from vpoc_backtest.ml_backtest import load_run
from vpoc_backtest.multiple_testing import _load_trials
from vpoc_backtest.readers import read_bars
from vpoc_backtest.rolls import front_month, roll_table
from vpoc_backtest.run_config import RunConfig, load_market, read_config
from vpoc_backtest.stats import _skew_and_kurtosis, deflated_sharpe_ratio, expected_max_sharpe
from vpoc_backtest.vpoc import session_levels

command = Path(sys.executable).parent/'vpoc_backtest'
shared = Path(__file__).parents[2]/'shared/data'
FILES = {
    'metrics.json',
    'manifest.json',
    'config.toml',
    'trades.csv',
    'signals.csv',
    'skipped.csv',
    'no_order_reasons.csv',
    'equity.csv',
    'rejects.csv',
    'quality.csv',
    'levels.parquet',
    'strategy_comparison.png',
    'report.html',
    'report.ipynb',
    'log.txt',
}

FROM_ELSEWHERE = re.compile(
    r'<script[^>]+src|<link|@import|(?:src|href)="(?!data:|#)|(?-i:url)\((?!#)', re.I
)  # the charts have scripts, in the page itself: it must open offline


def quick(args):
    "Options without null markets, unless they are asked for."
    for option in ('--placebo', '--setups'): args = [*args, *([] if option in args else [option, 0])]
    return args


def run(*args, cwd): return sketched('vpoc_backtest', *quick(args), cwd=cwd)


def run_alone(*args, cwd, name='vpoc_backtest'):
    "The command in a process of its own, as a user starts it."
    return subprocess.run([command.parent/name, *map(str, args)], cwd=cwd, capture_output=True, text=True, timeout=300)


def check_run(folder):
    "The run directory of a rule without a filter is complete and its files agree with each other."
    assert {p.name for p in folder.iterdir()} == FILES
    metrics, trades = json.loads((folder/'metrics.json').read_text()), pd.read_csv(folder/'trades.csv')
    equity, skipped, signals = (pd.read_csv(folder/f'{n}.csv') for n in ('equity', 'skipped', 'signals'))
    original = metrics['original']
    assert len(trades) == original['trades'] and len(signals) == len(trades) + len(skipped)
    assert equity.original_equity.iloc[-1] == pytest.approx(100_000 + trades.net.sum(), abs=.005)
    assert len(equity) == metrics['data']['sessions'] == len(pd.read_parquet(folder/'levels.parquet'))
    assert original['max_drawdown'] == pytest.approx(equity.original_drawdown.min())
    page = (folder/'report.html').read_text()
    assert len(page) < 5e6 and not FROM_ELSEWHERE.search(page) and page.rstrip().endswith('</html>')
    return metrics, trades


def test_both_strategies_on_the_sample_market(tmp_path):
    done = run_alone(*quick(['--out', 'out', '--seed', 1]), cwd=tmp_path)
    assert done.returncode == 0 and 'Traceback' not in done.stderr, done.stderr
    folder = tmp_path/'out'
    assert {p.name for p in folder.iterdir()} == FILES
    metrics = json.loads((folder / 'metrics.json').read_text())
    trades = pd.read_csv(folder / 'trades.csv')
    equity = pd.read_csv(folder / 'equity.csv')
    told, signals = metrics['filter'], pd.read_csv(folder/'signals.csv')
    assert (
        told['accepted'] + told['refused'] + told['unjudged']
        == told['signals']
        == signals.accepted.notna().sum()
        == (signals.date >= told['first_session']).sum()
    )
    assert equity.date.iloc[0] == told['first_session'] and trades.date.min() >= told['first_session']
    for name in ('original', 'ml'):
        net = trades.net[trades.strategy == name]
        assert equity[f'{name}_equity'].iloc[-1] == pytest.approx(100_000 + net.sum(), abs=0.005)
        assert metrics[name]['trades'] == len(net)
    assert (signals.trained_until.dropna() < signals.date[signals.trained_until.notna()]).all()
    page = (folder/'report.html').read_text()
    assert 'The filter' in page and page.count('data:image/png') >= 6 and len(page) < 5e6


def test_claims_of_traders(tmp_path):
    done = run('--model', 'none', '--setups', 3, '--out', 'out', cwd=tmp_path)
    assert done.returncode == 0 and 'claims of traders, on 3 null markets of each kind' in done.stderr
    assert '43 setups on 1,257 sessions of ES' in done.stdout and 'The minutes of this market are' in done.stdout
    assert {p.name for p in (tmp_path/'out').iterdir()} == FILES | {'setups.csv'}
    table = pd.read_csv(tmp_path/'out/setups.csv', index_col='setup')
    assert len(table) >= 20 and {'mirror_p', 'block_p', 'frequency', 'r'} <= set(table)
    assert 'Do the claims of traders hold here?' in (tmp_path/'out/report.html').read_text()


def test_claims_by_themselves(tmp_path):
    random_walk(40, seed=3).reset_index().to_parquet(tmp_path/'walk.parquet')
    setups = Path(sys.executable).parent/'vpoc_setups'
    ask = lambda *args: subprocess.run([setups, *map(str, args)], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    first, second = (ask('--data', 'walk.parquet', '--setups', 5, '--jobs', jobs, '--out', f'of {jobs}') for jobs in (1, 2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert first.stdout.rstrip().endswith('setups.html') and '80% rule' in first.stdout
    for name in ('setups.csv', 'setups_by_year.csv', 'setups_by_volatility.csv'):
        assert (tmp_path/'of 1'/name).read_bytes() == (tmp_path/'of 2'/name).read_bytes()
    for args, said in ((['--data', 'none.csv'], 'there is no such file'), (['--setups', '0'], 'must be 1 or more'),
                       (['--data', 'walk.parquet', '--out', '.'], 'holds something else'), (['--nulls', '3'], 'unrecognized option --nulls')):
        wrong = ask(*args)
        assert wrong.returncode == 2 and said in wrong.stderr and len(wrong.stderr.splitlines()) == 1, (args, wrong.stderr)


def test_sample_market_twice(tmp_path):
    first, second = (
        start(*quick(['--model', 'none', '--placebo', 3, '--out', tmp_path / n]), cwd=tmp_path)
        for n, start in (('a', run_alone), ('b', functools.partial(typed, 'vpoc_backtest')))
    )
    assert first.returncode == second.returncode == 0, first.stderr
    assert 'sample market' in first.stderr and 'Win rate' in first.stdout and 'Traceback' not in first.stderr
    metrics, trades = check_run(tmp_path/'a')
    assert metrics['data']['sessions'] == 1257
    assert metrics['ml'] is None
    assert set(trades.strategy) == {'original'}
    for name in ('metrics.json', 'trades.csv', 'signals.csv', 'equity.csv'):
        assert (tmp_path / 'a' / name).read_bytes() == (tmp_path / 'b' / name).read_bytes()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith('.')]
    told, ledger = metrics['evidence'], pd.read_parquet(tmp_path/'BACKTEST/trials.parquet')
    assert told['placebos'] == 3
    assert told['columns_that_look_ahead'] == []
    assert set(told['p_values']) == {'drift', 'mirror', 'block'}
    assert {p for test in told['p_values'].values() for p in test.values()} <= {0.25, 0.5, 0.75, 1.0}
    assert told['orders_tested'] == 230
    told_in_words = ' '.join(first.stdout.split())  # the sentences are wrapped
    assert 'randomised copies of your data' in told_in_words
    assert 'with the future scrambled; none changed.' in told_in_words
    assert metrics['verdict']['original']['conclusion'] == 'loss'
    assert 'Rule: Do not trade this.' in told_in_words
    assert len(ledger) == 25
    assert ledger.sharpe[0] == metrics['original']['sharpe']
    assert metrics['original']['trials'] == 25  # the rule is one of its neighbours
    assert 1 < metrics['original']['effective_trials'] < 25
    page = (tmp_path/'a/report.html').read_text()
    assert all(
        heading in page
        for heading in (
            'Is it luck?',
            'Does it use the future?',
            'Does it depend on its settings?',
            'Sensitivity to costs and fills',
            'Monday',
            'lowest third',
        )
    )


def test_trials_are_counted(tmp_path):
    "A run enters its 25 neighbours in the ledger: new ones count, known ones do not; other bars count anew."
    for n in (0, 1):
        random_walk(150, bars_per_session=13, seed=n).tz_localize(None).to_csv(tmp_path / f'{n}.csv')
    for i in range(3):
        (tmp_path / f'{i}.toml').write_text(f'[rules]\nrule = "migration"\nstop_volatility = 0.{i + 3}\n')
    seen = []
    for data, config, out in (
        ('0.csv', '0.toml', 'a'),
        ('0.csv', '1.toml', 'b/c'),
        ('0.csv', '1.toml', 'b/c'),
        ('1.csv', '0.toml', 'd'),
        ('0.csv', '2.toml', 'e'),
    ):
        done = run('--model', 'none', '--data', data, '--config', config, '--out', out, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        seen.append(json.loads((tmp_path/out/'metrics.json').read_text()))
    m = [one['original'] for one in seen]
    assert [one['trials'] for one in m] == [
        25,
        40,
        40,
        25,
        65,
    ]  # stops of 0.3 and 0.6 are neighbours of 0.3 and of 0.4
    assert m[1] == m[2] and all(1 <= one['effective_trials'] < one['trials'] for one in m)
    counted = _load_trials(tmp_path/'BACKTEST', seen[4]['data']['fingerprint'])
    assert (counted.number, counted.effective) == (65, m[4]['effective_trials'])
    assert m[4]['expected_max_sharpe'] == pytest.approx(
        expected_max_sharpe(counted.effective, max(counted.variance, 1 / 150)) * 252**0.5
    )


def test_best_of_the_neighbours_run_again(tmp_path):
    "A run with the best settings of the report counts all the trials that the report showed."
    data = shared/'es_dollar_bars_2015_2016.parquet'
    args = ['--data', data, '--stamp', 'end'] if data.exists() else []
    assert run('--model', 'none', *args, '--out', 'first', cwd=tmp_path).returncode == 0
    shown = pd.read_parquet(tmp_path/'BACKTEST/trials.parquet')
    best = shown.loc[shown.sharpe.idxmax()]
    rules = json.loads(best.settings)['rules']['SignalRules']
    (tmp_path/'best.toml').write_text(f"[rules]\nwindow = {rules['window']}\nmin_r2 = {rules['min_r2']}\n")
    for _ in range(2):
        assert (
            run('--model', 'none', *args, '--config', 'best.toml', '--out', 'best', cwd=tmp_path).returncode
            == 0
        )
    again, returns = (
        load_run(tmp_path / 'best'),
        load_run(tmp_path / 'best').equity.original_equity.pipe(
            lambda e: e / e.shift(1, fill_value=100_000) - 1
        ),
    )
    m, n = again.metrics['original'], len(returns)
    ledger = pd.read_parquet(tmp_path/'BACKTEST/trials.parquet')
    assert len(shown) == 25 and m['sharpe'] == best.sharpe and m['trials'] == ledger.settings.nunique() >= 25
    assert 2 < m['effective_trials'] < 15
    as_one_of = lambda k: deflated_sharpe_ratio(
        m['sharpe'] / 252**0.5, n, k, 1 / n, *_skew_and_kurtosis(returns)
    )
    assert as_one_of(m['trials']) < m['dsr'] < as_one_of(2) < m['psr']
    assert sum(f.stat().st_size for f in (tmp_path/'BACKTEST/trials.parquet').iterdir()) < 200_000


def test_own_settings_come_back(tmp_path):
    (tmp_path/'my.toml').write_text('[rules]\nrule = "migration"\n[backtest]\nslippage_ticks = 2\n')
    random_walk(150, bars_per_session=13).tz_localize(None).to_csv(tmp_path/'w.csv')
    done, again = (run('--model', 'none', '--data', 'w.csv', '--config', config, '--out', out, cwd=tmp_path)
                   for config, out in (('my.toml', 'a'), ('a/config.toml', 'b')))
    assert done.returncode == again.returncode == 0, done.stderr + again.stderr
    assert json.loads((tmp_path/'a/metrics.json').read_text())['original']['trades'] > 20
    assert (tmp_path/'a/metrics.json').read_bytes() == (tmp_path/'b/metrics.json').read_bytes()
    assert 'rule = "migration"' in (tmp_path/'b/config.toml').read_text()


def write_ninjatrader(bars, name, folder):
    "Bars as NinjaTrader writes them: UTC, stamped at the end of the minute."
    stamps = (bars.index + pd.Timedelta('1min')).tz_convert('UTC').strftime('%Y%m%d %H%M%S')
    prices = bars[_PRICES].map('{:.2f}'.format)
    lines = [';'.join(row) for row in zip(stamps, *(prices[c] for c in _PRICES), bars.volume.astype(str))]
    (folder/f'{name}.Last.txt').write_text('\r\n'.join(lines) + '\r\n')


def test_a_folder_of_contracts_in_DATA(tmp_path):
    "Two contracts that overlap for ten days, the second 7 points higher; the VIX beside them."
    data = tmp_path/'DATA'
    data.mkdir()
    market = random_walk(120, bars_per_session=390, seed=5)
    day = np.repeat(np.arange(120), 390)
    old, new = market[day < 70], market[day >= 60]
    new = new.assign(
        volume=np.where(day[day >= 60] < 65, new.volume // 10, new.volume * 3),
        **{c: new[c] + 7 for c in _PRICES},
    )
    write_ninjatrader(old, 'ES 03-15', data)
    write_ninjatrader(new, 'ES 06-15', data)
    (data / 'VIX_History.csv').write_text(
        'DATE,OPEN,HIGH,LOW,CLOSE\n01/02/2015,18,18,17,17.79\n01/05/2015,19,22,19,19.92\n'
    )
    bars, rejects = read_bars(data)
    assert not len(rejects) and set(bars.contract) == {'ES 03-15', 'ES 06-15'}
    rolls = roll_table(front_month(bars))
    assert (
        rolls.gap.tolist() == [7.0] and rolls.date[0] == pd.bdate_range('2015-01-02', periods=120)[66]
    )  # led on the 66th session, traded from the next
    done = run('--model', 'none', '--out', 'out', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    metrics, trades = check_run(tmp_path/'out')
    assert metrics['data']['rolls'] == 1
    assert metrics['data']['vix_closes'] == 2
    assert metrics['data']['source'] == 'DATA'
    assert set(trades.contract) <= {'ES 03-15', 'ES 06-15'}


MISTAKES = [
    (['--data', 'nothing.csv'], 'no such file or folder'),
    (['--symbol', 'GC'], 'use ES, MES, NQ, MNQ'),
    (['--segment', 'night'], 'use RTH, ETH, all'),
    (['--data', 'bars.csv', '--layout', 'excel'], 'is not known'),
    (['--data', 'bars.csv', '--tz', 'Chicago'], 'is no time zone'),
    (['--data', 'bars.csv', '--stamp', 'middle'], 'use open or end'),
    (['--data', 'adjusted.csv'], 'off the 0.25 grid'),
    (['--data', 'empty.csv'], 'is empty'),
    (['--data', 'evening.csv'], 'no bar lies in RTH hours'),
    (['--config', 'bad.toml'], 'has no setting'),
    (['--model', 'train', '--data', 'bars.csv'], '--model none'),
    (['--model', 'oracle'], 'no such folder'),
    (['--model', 'latest'], 'run vpoc_train first'),
    (['--vix', 'bars.csv'], 'not a day and a VIX close'),
    (['--out', 'mine'], 'not just an earlier run'),
    (['--data', ''], 'is a variable not set'),
    (['--seed', '-1'], 'zero or more'),
    (['--data', 'NQ 12-13.Last.txt'], 'use --symbol NQ'),
    (['--data', 'two'], 'different contracts'),
    (['--data', 'daily.csv', '--segment', 'all'], 'one bar a day'),
    (['--data', 'doubt.csv'], 'month-first'),
    (['--config', 'odd.toml'], 'kind of its default'),
    (['--config', 'small.toml'], 'mlp or attention'),
    (['--device', 'tpu', '--model', 'train'], 'use auto, cpu, cuda'),
    (['--tz', '../x', '--data', 'bars.csv'], 'is no time zone'),
    (['--data', 'twice.csv'], "two columns mean 'volume'"),
    (['--seed', 'x'], 'invalid int'),
    (['--placebo', '-3'], 'zero or more'),
    (['--nonsense'], 'unrecognized')]


@pytest.mark.parametrize('args, message', MISTAKES)
def test_what_a_user_can_mend_is_one_line(tmp_path, args, message):
    head = 'timestamp,open,high,low,close,volume\n'
    rows = '2020-01-06 {}:30,4000,4001,4000,{},5\n2020-01-06 {}:31,4000,4001,4000,4000,5\n'
    (tmp_path/'bars.csv').write_text(head + rows.format('09', 4000, '09'))
    (tmp_path/'adjusted.csv').write_text(head + rows.format('09', 4000.1, '09'))
    (tmp_path/'evening.csv').write_text(head + rows.format('19', 4000, '19'))
    (tmp_path/'empty.csv').write_text('')
    (tmp_path/'bad.toml').write_text('[rules]\nmin_r_squared = 0.7\n')
    (tmp_path/'small.toml').write_text('[filter]\narch = "tree"\n')
    (tmp_path/'odd.toml').write_text('[rules]\nmin_confidence = -inf\n')
    (tmp_path / 'NQ 12-13.Last.txt').write_text(
        '20131007 133100;3200;3200;3200;3200;5\n20131007 133200;3200;3200;3200;3200;5\n'
    )
    (tmp_path / 'daily.csv').write_text(
        'Date,Open,High,Low,Close,Volume\n2020-01-06,1,1,1,1,5\n2020-01-07,1,1,1,1,5\n'
    )
    (tmp_path/'doubt.csv').write_text('Date,Time,Open,High,Low,Close,Volume\n10/09/2013,09:30,1,1,1,1,5\n')
    (tmp_path / 'twice.csv').write_text(
        'timestamp,open,high,low,close,volume,Vol\n2020-01-06 09:30,1,1,1,1,5,5\n'
    )
    (tmp_path/'two').mkdir()
    for i in range(2):
        (tmp_path / f'two/{i}.csv').write_text(
            head + ''.join(f'2020-01-06 10:{m:02d},{4000 - 7 * i},4001,3990,4000,5\n' for m in range(60))
        )
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine/manifest.json').write_text('{"name": "a web app"}')
    (tmp_path/'mine/thesis.txt').write_text('years of work')
    done = run(*args, *([] if '--out' in args else ['--out', 'out']), cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr.splitlines()[-1] and 'Traceback' not in done.stderr
    assert not (tmp_path/'out').exists() and (tmp_path/'mine/thesis.txt').read_text() == 'years of work'


@pytest.mark.parametrize('name, args, message', [
    ('vpoc_backtest', ['--symbol', 'GC'], 'use ES, MES, NQ, MNQ'), ('vpoc_backtest', ['--data', 'nothing.csv'], 'no such file or folder'),
    ('vpoc_train', ['-hl', '128,64'], 'options are written out here'), ('vpoc_evaluate', ['a.pt'], 'name the folder of a training')])
def test_a_process_of_its_own_ends_with_the_same_line(tmp_path, name, args, message):
    done, here = (start(*args, cwd=tmp_path) for start in (functools.partial(run_alone, name=name), functools.partial(typed, name)))
    assert (done.returncode, done.stdout, done.stderr) == (here.returncode, here.stdout, here.stderr)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1 and not list(tmp_path.iterdir())


def test_one_session_is_enough_to_see_why_there_is_no_order(tmp_path):
    rows = ''.join(f'2020-01-06 10:{m:02d},4000,4001,3999,4000,5\n' for m in range(30))
    (tmp_path/'one.csv').write_text('timestamp,open,high,low,close,volume\n' + rows)
    done = run('--data', 'one.csv', '--out', 'out', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert check_run(tmp_path/'out')[0]['original']['trades'] == 0


def test_a_run_can_be_replaced_from_inside_itself(tmp_path):
    random_walk(60, bars_per_session=13).tz_localize(None).to_csv(tmp_path/'w.csv')
    first = run('--data', tmp_path/'w.csv', '--out', 'out', cwd=tmp_path)
    again = run('--data', tmp_path/'w.csv', '--out', '../out', cwd=tmp_path/'out')
    assert first.returncode == again.returncode == 0, first.stderr + again.stderr
    check_run(tmp_path/'out')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['BACKTEST', 'out', 'w.csv']


def test_a_terminal_without_unicode(tmp_path):
    random_walk(60, bars_per_session=13).tz_localize(None).to_csv(tmp_path/'w.csv')
    done = subprocess.run(
        [command, '--data', 'w.csv', '--placebo', '3', '--setups', '2', '--out', 'out'],
        cwd=tmp_path,
        capture_output=True,
        timeout=300,
        env={**os.environ, 'PYTHONIOENCODING': 'ascii'},
    )
    assert done.returncode == 0 and b'Trades' in done.stdout


def test_interrupted_it_leaves_nothing(tmp_path):
    for sign, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        running = subprocess.Popen(
            [command, '--out', 'out'], cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for line in running.stderr:
            if line.startswith('samples'): break
        running.send_signal(sign)
        running.communicate(timeout=240)  # where interrupts are ignored, as behind `&`, it runs to its end
        assert running.returncode in (code, 0)  # 0: it had finished
        assert {p.name for p in tmp_path.iterdir()} <= (
            {'out', 'BACKTEST'} if running.returncode == 0 else {'BACKTEST'}
        )


@pytest.mark.parametrize('name', ['vpoc_backtest', 'vpoc_train', 'vpoc_evaluate'])
def test_help_fits_a_screen_and_comes_at_once(tmp_path, name):
    took = []
    for _ in range(3):
        start = time.monotonic()
        done = subprocess.run(
            [command.parent / name, '--help'],
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ | {'COLUMNS': '100'},
        )
        took.append(time.monotonic() - start)
        assert done.returncode == 0 and len(done.stdout.splitlines()) <= 50 and 'usage' in done.stdout
    assert min(took) < 2  # a ceiling for a busy machine; loading pandas and numba would take longer than that


def test_settings_to_begin_with(tmp_path):
    done = run('--write_config', 'my.toml', cwd=tmp_path)
    assert done.returncode == 0 and [p.name for p in tmp_path.iterdir()] == ['my.toml'], done.stderr
    text = (tmp_path/'my.toml').read_text()
    assert all('#' in line for line in text.splitlines() if line)
    assert read_config(tmp_path / 'my.toml') == RunConfig()
    assert run('--write_config', 'my.toml', cwd=tmp_path).returncode == 2
    assert (tmp_path / 'my.toml').read_text() == text


def test_a_reader_that_has_read_enough(tmp_path):
    (tmp_path/'w.csv').write_text(random_walk(60, bars_per_session=13).tz_localize(None).to_csv())
    done = subprocess.run(
        f'{command} --data w.csv --model none --placebo 0 --setups 0 --out out | true',
        shell=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert 'Traceback' not in done.stderr
    assert 'Exception' not in done.stderr
    assert (tmp_path / 'out/metrics.json').exists()


def test_incomplete_sessions_are_listed_and_traded(tmp_path):
    bars = random_walk(120, bars_per_session=390, seed=5)
    days = bars.index.normalize().unique()
    late = bars.index.normalize().isin(days[70:75]) & (bars.index.hour >= 12)
    bars[~late].tz_localize(None).rename_axis('timestamp').to_csv(tmp_path/'torn.csv')
    (tmp_path/'my.toml').write_text('[rules]\nrule = "migration"\n')
    (tmp_path/'all.toml').write_text('[rules]\nrule = "migration"\n[data]\ncompleteness = 0.0\n')
    done, every = (
        run('--model', 'none', '--data', 'torn.csv', '--config', f'{n}.toml', '--out', n, cwd=tmp_path)
        for n in ('my', 'all')
    )
    assert done.returncode == every.returncode == 0, done.stderr + every.stderr
    assert f'5 incomplete, which make no levels: {days[70].date()}' in done.stderr
    assert 'incomplete' not in every.stderr
    metrics, trades = check_run(tmp_path/'my')
    saved, other = load_run(tmp_path/'my'), load_run(tmp_path/'all')
    out = saved.quality.query("status == 'incomplete'").date
    assert metrics['data']['incomplete_sessions'] == 5 and (out.dt.date == days[70:75].date).all()
    assert metrics['data']['fingerprint'] == other.metrics['data']['fingerprint']
    assert other.metrics['data']['incomplete_sessions'] == 0
    assert saved.levels.vpoc.isna().sum() == 5 and other.levels.vpoc.notna().all()
    assert saved.signals.date.isin(out).any() and saved.equity.date.isin(out).sum() == 5
    assert not saved.signals.known_at.dt.tz_localize(None).dt.normalize().isin(out).any()
    assert other.signals.known_at.dt.tz_localize(None).dt.normalize().isin(out).any()
    assert other.metrics['original']['trials'] == 50
    assert 'Data quality' in (tmp_path / 'my/report.html').read_text()


def test_what_was_rejected_is_corrected_and_read_again(tmp_path):
    "A run leaves rejects.csv, a person writes the right rows beside them, and the next run reads them."
    data = tmp_path/'exports'
    data.mkdir()
    lines = (
        random_walk(60, bars_per_session=13).tz_localize(None).rename_axis('timestamp').to_csv().splitlines()
    )
    good = {k: lines[k] for k in (100, 200, 300)}
    torn = lines[:]
    torn[100] = lines[100].replace(',', ',-', 1)
    torn[200] = lines[200] + ',what,is,this'
    torn[300] = '2015-13-45 10:00:00' + lines[300][19:]
    (data/'es.csv').write_text('\n'.join(torn) + '\n')
    first = run('--model', 'none', '--data', data, '--out', 'first', cwd=tmp_path)
    assert first.returncode == 0 and '3 rows refused (see rejects.csv)' in first.stderr, first.stderr
    rejects = pd.read_csv(tmp_path/'first/rejects.csv', dtype=str)
    rejects.assign(correction=[good[int(n) - 1] for n in rejects.line]).to_csv(
        data / 'corrections.csv', index=False
    )
    second = run('--model', 'none', '--data', data, '--out', 'second', cwd=tmp_path)
    assert second.returncode == 0 and '0 rows refused' in second.stderr, second.stderr
    (tmp_path/'whole.csv').write_text('\n'.join(lines) + '\n')
    assert run('--model', 'none', '--data', 'whole.csv', '--out', 'third', cwd=tmp_path).returncode == 0
    corrected, whole = load_run(tmp_path/'second'), load_run(tmp_path/'third')
    assert corrected.metrics['data']['fingerprint'] == whole.metrics['data'][
        'fingerprint'
    ] and corrected.metrics['original'] == whole.metrics['original'] | {
        'trials': corrected.metrics['original']['trials']
    }
    left = pd.concat([load_run(tmp_path/'first').rejects.assign(correction='')])
    left.to_csv(data/'corrections.csv', index=False)  # nothing filled in: they are refused again
    assert len(read_bars(data)[1]) == 3


def test_a_VIX_in_the_file_of_the_bars(tmp_path):
    "One CSV with a VIX column, the close of each day beside its minutes, needs no --vix."
    bars = random_walk(90, bars_per_session=39, seed=4).tz_localize(None)
    days = bars.index.normalize()
    closes = pd.Series(
        np.round(15 + np.random.default_rng(1).normal(0, 1, 90).cumsum().clip(-5, 20), 2), days.unique()
    )
    table = (
        bars.assign(VIX=closes.reindex(days).to_numpy())
        .rename(columns=str.title)
        .rename(columns={'Vix': 'VIX'})
    )
    table.insert(0, 'Date', days.strftime('%m/%d/%Y')), table.insert(1, 'Time', bars.index.strftime('%H:%M'))
    table.to_csv(tmp_path/'ES_VIX.csv', index=False)
    done = run(
        '--model',
        'none',
        '--data',
        'ES_VIX.csv',
        '--layout',
        'month-first',
        '--tz',
        'America/New_York',
        '--stamp',
        'open',
        '--out',
        'out',
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert load_run(tmp_path/'out').metrics['data']['vix_closes'] == 90
    market = load_market(tmp_path/'ES_VIX.csv', layout='month-first', tz='America/New_York', stamp='open')
    assert (market.vix.to_numpy() == closes.to_numpy()).all() and (market.vix.index == closes.index).all()
    known = make_features(session_levels(market.bars), market.vix, garch=False).vix_level
    assert np.exp(known.iloc[1:]).to_numpy() == pytest.approx(
        closes.to_numpy()[:-1]
    )  # of the day before, in every session


REAL = [
    ('es_dollar_bars_2015_2016', ['--stamp', 'end', '--vix', shared/'vix_daily_1990_2026.csv'], 514),
    ('es_1min_2013_2020', ['--vix', shared/'vix_daily_1990_2026.csv'], 14)]


@pytest.mark.skipif(not shared.exists(), reason='the folder of real data is not here')
@pytest.mark.parametrize('file, args, sessions', REAL)
def test_real_bars(tmp_path, file, args, sessions):
    done = run('--model', 'none', '--data', shared/f'{file}.parquet', *args, '--out', 'out', cwd=tmp_path)
    assert done.returncode == 0 and 'Win rate' in done.stdout, done.stderr
    metrics, trades = check_run(tmp_path/'out')
    assert metrics['data']['sessions'] == sessions
    assert ((trades.entry / ES.tick_size) % 1 == 0).all()


NOWHERE = [
    (['--config', '.'], 'is a folder: name a file'),
    (['--config', 'a' * 5000], 'file name too long | there is no such file'),
    (['--data', 'b' * 300], 'file name too long | there is no such file'),
    (['--out', '/proc/x'], 'nothing can be written in /proc'),
    (['--out', '/dev/null/x'], 'nothing can be written in /dev/null'),
    (['--write_config', '/proc/x'], 'nothing can be written in /proc'),
    (['--config', 'locked.toml'], 'permission denied'),
]


@pytest.mark.skipif(sys.platform == 'win32', reason='no /proc')
@pytest.mark.parametrize('args, message', NOWHERE, ids=lambda x: x[0] if isinstance(x, list) else '')
def test_whatever_the_system_refuses_is_one_line(tmp_path, args, message):
    (tmp_path/'locked.toml').touch(0)
    if 'locked.toml' in args and os.access(tmp_path / 'locked.toml', os.R_OK):
        pytest.skip('root may read every file')
    done = run(*args, cwd=tmp_path)
    line, = done.stderr.splitlines()  # nothing was begun
    assert done.returncode == 2 and any(said in line for said in message.split(' | ')) and done.stdout == ''


PUBLISHED = [
    ('vpoc_backtest', ['--model_path', 'x.pt'], '--model takes the folder of a training'),
    ('vpoc_backtest', ['-m', 'x.pt'], 'options are written out here: --model'),
    ('vpoc_backtest', ['--model', 'best_model.pt'], 'pickle'),
    ('vpoc_backtest', ['--confidence_threshold', '70'], '[filter] min_confidence'),
    ('vpoc_backtest', ['--output_dir=BACKTEST'], '--out'),
    ('vpoc_backtest', ['--config', 'upper.toml'], 'here it is [backtest] initial_capital'),
    ('vpoc_backtest', ['--config', 'settings.json'], '--write_config my.toml'),
    ('vpoc_backtest', ['--epochs', '3'], 'it belongs to vpoc_train'),
    ('vpoc_train', ['-hl', '128,64'], 'options are written out here: --hidden_layers'),
    ('vpoc_train', ['--dropout_rate', '0.4'], '[filter] dropout'),
    ('vpoc_train', ['--resume_from_checkpoint'], '--resume goes on'),
    ('vpoc_evaluate', ['--models', 'a.pt', 'b.pt'], 'vpoc_evaluate TRAINING/'),
    ('vpoc_evaluate', ['a.pt'], 'name the folder of a training'),
    ('vpoc_backtest', ['--dat', 'no.csv', '--seedling', '2'], 'is --seed meant?')]


@pytest.mark.parametrize('name, args, message', PUBLISHED)
def test_what_served_in_the_published_version_gets_a_hint(tmp_path, name, args, message):
    (tmp_path/'upper.toml').write_text('INITIAL_CAPITAL = 100000\n')
    (tmp_path/'settings.json').write_text('{"initial_capital": 100000}')
    done = typed(name, *args, cwd=tmp_path)
    line, = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith(f'{name}: ') and message in line, line


EXAMPLES = [
    (['--seed', 'x'], '--seed 1'),
    (['--seed', '-1'], '--seed 1'),
    (['--placebo'], '--placebo 200'),
    (['--jobs', '0'], '--jobs 2'),
    (['--device', 'tpu'], '--device cpu'),
    (['--symbol', '???'], '--symbol MES'),
    (['--segment', 'night'], '--segment RTH'),
    (['--stamp', 'middle'], '--stamp end'),
    (['--tz', 'Chicago'], '--tz America/Chicago'),
    (['--layout', 'excel'], '--layout ninjatrader'),
    (['--model', 'oracle'], '--model latest'),
    (['--data', 'no.csv'], '--data exports/'),
    (['--vix', 'no.csv'], '--vix VIX_History.csv'),
    (['--config', 'no.toml'], '--config my.toml')]


@pytest.mark.parametrize('args, example', EXAMPLES)
def test_a_bad_option_shows_an_example_before_anything_is_read(tmp_path, args, example):
    done = run(*args, '--out', 'out', cwd=tmp_path)
    line, = done.stderr.splitlines()
    assert done.returncode == 2 and line.endswith(f', as in {example}'), line
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope='module')
def brief(tmp_path_factory):
    "A short run on a random walk."
    folder = tmp_path_factory.mktemp('brief')
    random_walk(90, bars_per_session=26, seed=1).tz_localize(None).rename_axis('timestamp').to_csv(
        folder / 'w.csv'
    )
    (folder/'my.toml').write_text('[rules]\nrule = "migration"\n')
    return folder, [
        '--data',
        'w.csv',
        '--config',
        'my.toml',
        '--model',
        'none',
        '--placebo',
        '3',
        '--setups',
        '2',
        '--out',
        'out',
    ]


def test_verdict_report_and_log_at_the_end(brief):
    folder, args = brief
    done = run(*args, cwd=folder)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert (folder/lines[-1]).samefile(folder/'out/report.html')
    verdict, = re.findall(r'<p class="verdict"><b>(.*?)</b>', (folder/'out/report.html').read_text())
    assert verdict in ' '.join(done.stdout.split())
    stages = [line for line in done.stderr.splitlines() if not line.startswith(('reading', 'evidence'))]
    assert all(re.search(r'  \(\d+\.\d s\)$', line) for line in stages) and len(stages) >= 8
    metrics = json.loads((folder / 'out/metrics.json').read_text())
    log = (folder / 'out/log.txt').read_text().splitlines()
    drawn = metrics['monte_carlo']['original']
    assert drawn['method'] == 'block'
    assert drawn['profit_low'] < metrics['original']['total_profit'] < drawn['profit_high']
    assert metrics['data']['outlier_bars'] == 0
    assert 'Outlier bars in the data' in done.stdout and f"${abs(drawn['profit_low']):,.0f}" in done.stdout
    assert all(re.match(r'\d\d:\d\d:\d\d', line) for line in log[1:])
    assert [line[10:] for line in log[1:]] == [line.rstrip() for line in done.stderr.splitlines() + lines]


def test_the_interval_is_the_block_bootstrap_of_the_sessions(brief):
    from vpoc_backtest.report_notebook import load_results
    from vpoc_backtest.stats import monte_carlo
    folder, args = brief
    if not (folder/'out').exists(): run(*args, cwd=folder)
    result = load_results(folder/'out')['rule']
    profits = np.diff(np.r_[result.config.initial_capital, result.equity.to_numpy()])
    low, high = monte_carlo(profits, 10_000, 'block', 0).interval(.9)
    drawn = json.loads((folder/'out/metrics.json').read_text())['monte_carlo']['original']
    assert (drawn['profit_low'], drawn['profit_high']) == pytest.approx((low, high))


def test_an_outlier_is_counted(tmp_path):
    bars = random_walk(60, bars_per_session=26, seed=1)
    torn = bars.copy()
    torn.loc[bars.index[500], 'high'] = bars.high.iloc[500] + 500
    torn.tz_localize(None).rename_axis('timestamp').to_csv(tmp_path/'w.csv')
    done = run('--data', 'w.csv', '--model', 'none', '--out', 'out', cwd=tmp_path)
    assert json.loads((tmp_path/'out/metrics.json').read_text())['data']['outlier_bars'] == 1, done.stderr
    assert re.search(r'Outlier bars in the data +1\b', done.stdout)


def test_open_hands_the_report_to_the_browser(brief, monkeypatch, capsys):
    import webbrowser

    from vpoc_backtest.cli import _backtest_command
    folder, _ = brief
    monkeypatch.chdir(folder)
    opened = []
    monkeypatch.setattr(webbrowser, 'open', opened.append)
    _backtest_command(data='w.csv', model='none', placebo=0, setups=0, out='shown', open=True)
    assert opened == [(folder/'shown/report.html').resolve().as_uri()]
    _backtest_command(data='w.csv', model='none', placebo=0, setups=0, out='shown')
    assert len(opened) == 1


@pytest.mark.skipif(sys.platform == 'win32', reason='no pseudo-terminal')
@pytest.mark.parametrize('columns', [60, 140])
def test_lines_fit_the_terminal(brief, columns):
    import fcntl
    import pty
    import struct
    import termios
    folder, args = brief
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack('HHHH', 40, columns, 0, 0))
    env = {k: v for k, v in os.environ.items() if k not in ('COLUMNS', 'LINES')}
    process = subprocess.Popen([command, *args], cwd=folder, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    seen = b''
    while True:
        try: part = os.read(ours, 65536)
        except OSError: break
        if not part: break
        seen += part
    assert process.wait(300) == 0
    lines = [
        line for line in re.split(r'[\r\n]+', seen.decode()) if line
    ]  # a bar of progress goes back to the start of its line
    sentences = [line for line in lines if ' ' in line.strip()]
    assert max(map(len, sentences)) <= columns and lines[-1] == 'out/report.html'
    assert any(len(line) > 60 for line in lines) == (columns > 60)


def ours():
    "Options of the commands, settings by table, and files that are written."
    from dataclasses import asdict, fields

    from vpoc_backtest import cli
    from vpoc_backtest.ml_backtest import _FILES as run_files
    kinds = (cli._BacktestOptions, cli._TrainOptions, cli._EvaluateOptions)
    options = {option.name for kind in kinds for option in fields(kind)} - {'folders'}
    trained = {
        'model.safetensors',
        'model.json',
        'predictions.csv',
        'metrics.json',
        'history.json',
        'history.png',
        'calibration.png',
        'config.toml',
        'arguments.json',
        'manifest.json',
        'ranking.csv',
    }
    return options, asdict(RunConfig()), run_files | trained


def test_what_the_page_for_newcomers_names_is_here():
    "Coming from the published version: every option, setting, file and function on our side exists."
    import vpoc_backtest as vb
    from vpoc_backtest.cli import _PUBLISHED_OPTIONS, _PUBLISHED_SETTINGS
    options, settings, files = ours()
    notebook = json.loads(
        (Path(__file__).parents[1] / 'nbs/tutorials/coming_from_the_published_version.ipynb').read_text()
    )
    prose = '\n'.join(''.join(c['source']) for c in notebook['cells'] if c['cell_type'] == 'markdown')
    rows = [line.strip('|').split('|')[1:] for line in prose.splitlines() if line.startswith('|')]
    here = '\n'.join(' '.join(row) for row in rows)
    said = '\n'.join([here, *_PUBLISHED_OPTIONS.values(), *_PUBLISHED_SETTINGS.values()])
    text = re.sub(r'\|[^|\n]*\|', '', prose)  # without what the published version called it
    assert len(rows) > 25 and set(re.findall(r'--(\w+)', said + text)) <= options
    named = re.findall(r'\[(levels|rules|backtest|filter|data)\] (\w+)', said)
    assert named and not [key for table, key in named if key not in settings[table]]
    assert (
        set(
            re.findall(
                r'`([\w.]+\.(?:csv|json|toml|txt|png|html|ipynb|parquet|safetensors))`',
                '\n'.join(row[0] for row in rows),
            )
        )
        <= files
    )
    assert set(re.findall(r'vb\.(\w+)', prose)) <= set(vb.__all__)
    assert set(_PUBLISHED_OPTIONS) & options <= {
        'out',
        'output',
    }  # each of them an option of one command and unknown to another


def test_tests_and_examples_of_options_agree():
    from vpoc_backtest.cli import _EXAMPLES
    assert set(_EXAMPLES) <= ours()[0]
