"""Any market, by the command: a file that names another symbol, a contract of the user's own, the VIX, folders in folders, and what is assumed of a file."""
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import sketched

from vpoc_backtest.backtest import run_backtest
from vpoc_backtest.cli import main, train_main
from vpoc_backtest.data import _PRICES, _ZONE, ES, NQ, BadData, ContractSpec, random_walk
from vpoc_backtest.ml_backtest import load_run
from vpoc_backtest.readers import read_bars
from vpoc_backtest.report_notebook import load_results
from vpoc_backtest.rolls import front_month
from vpoc_backtest.run_config import load_market
from vpoc_backtest.signals import SignalRules, make_signals
from vpoc_backtest.vpoc import session_levels

command = Path(sys.executable).parent/'vpoc_backtest'
shared = Path(__file__).parents[2]/'shared/data'


@pytest.fixture(autouse=True)
def no_cache(monkeypatch): monkeypatch.setenv('VPOC_CACHE', 'off')


def run(*args, cwd):
    return sketched('vpoc_backtest', *args, '--model', 'none', '--placebo', 0, '--setups', 0, cwd=cwd)


class Outcome:
    def __init__(self, code, said): self.returncode, self.stderr = code, said


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    "The same command called in this process: what loads once is not loaded for every mistake."
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)

    def call(command=main, **options):
        quick = {'model': 'none', 'placebo': 0, 'setups': 0, 'out': 'out'} if command is main else {'output': 'out'}
        try: command(**quick | options)
        except SystemExit as stop: return Outcome(stop.code, capsys.readouterr().err)
        finally: signal.signal(signal.SIGTERM, before)
        return Outcome(0, capsys.readouterr().err)
    return call


def check_mended(done, *messages):
    "Exit code 2 and a last line that says all of this."
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and 'Traceback' not in done.stderr and all(m in last for m in messages), done.stderr
    assert not Path('out').exists()


def export(bars, path, zone=_ZONE, header='timestamp', late=0, **columns):
    "Bars as a CSV with a header line and a clock in some zone."
    stamps = bars.index.tz_convert(zone).tz_localize(None) + pd.Timedelta(late, 'min')
    path.parent.mkdir(parents=True, exist_ok=True)
    bars[[*_PRICES, 'volume']].assign(**columns).set_axis(stamps.rename(header)).to_csv(path, date_format='%Y-%m-%d %H:%M:%S')
    return path


WALK = random_walk(60, bars_per_session=13)


@pytest.mark.parametrize('name, symbol, said', [
    ('NQ_1min.csv', None, ('NQ_1min.csv names NQ, and is run as ES', '--symbol NQ')), ('nq-1m.csv', None, ('names NQ', '--symbol NQ')),
    ('CME_MINI_NQ1!, 1.csv', None, ('names NQ', '--symbol NQ')), ('@NQ.csv', None, ('names NQ', '--symbol NQ')), ('MES_5min.csv', None, ('names MES', '--symbol MES')),
    ('CME_MINI_NQZ2023, 1.csv', None, ('names NQ', '--symbol NQ')), ('NQH24.csv', None, ('holds NQ 03-24, not ES', '--symbol NQ')), ('MESM5.csv', None, ('holds MES 06-15, not ES', '--symbol MES')),
    ('YM_1min.csv', None, ('names YM', 'below a line [contract]', 'symbol = "YM"')), ('6EZ13.csv', None, ('holds 6E 12-13, not ES', 'symbol = "6E"')),
    ('ES_1min.csv', 'NQ', ('names ES, and is run as NQ', '--symbol ES')), ('ES_1min.csv', 'MES', ('--symbol ES', 'symbol = "ES" and point_value = 5'))])
def test_a_name_that_says_another_symbol(here, tmp_path, name, symbol, said):
    export(WALK, tmp_path/name)
    check_mended(here(data=name, symbol=symbol), *said)


@pytest.mark.parametrize('name', ['vix_es.csv', 'ES_1min.csv', 'CME_MINI_ES1!, 1.csv', '@ES.csv', 'ESZ13-BarData.csv', 'messages.csv', 'best_prices.csv', 'es_nq.csv', 'bars.csv', 'quotes_cme.csv', 'test.csv', 'NQ/ES.csv'])
def test_names_that_say_nothing_else(tmp_path, name):
    assert len(read_bars(export(WALK, tmp_path/name))[0]) == len(WALK)
    assert len(read_bars(tmp_path)[0]) == len(WALK)


@pytest.mark.parametrize('column', ['symbol', 'Ticker', 'root', 'instrument'])
@pytest.mark.parametrize('value, ours', [('NQ', NQ), ('NQZ3', NQ), ('@NQ', NQ), ('CME_MINI:NQ1!', NQ), ('ES', ES), ('ES=F', ES), ('front', ES), ('NQ', ContractSpec('NQ', .25, 20., tz='America/Chicago', rth_open='08:30', rth_close='15:00'))])
@pytest.mark.parametrize('kind', ['csv', 'parquet'])
def test_a_column_that_says_the_symbol(tmp_path, column, value, ours, kind):
    path = export(WALK, tmp_path/'bars.csv', **{column: value})
    if kind == 'parquet': pd.read_csv(path, parse_dates=['timestamp']).to_parquet(path := tmp_path/'bars.parquet')
    assert len(read_bars(path, contract=ours)[0]) == len(WALK)
    if ours.symbol == 'NQ':
        with pytest.raises(BadData, match=f'bars.{kind} holds .*, not ES: use --symbol NQ'): read_bars(path)


def test_another_market_in_one_of_many_files(here, tmp_path):
    export(WALK[:390], tmp_path/'DATA/2015/ES.csv'), export(WALK[390:], tmp_path/'DATA/2015/other/NQ.csv')
    check_mended(here(), 'DATA: 2015/other/NQ.csv names NQ')


TABLE = '[contract]\nsymbol = "{}"\ntick_size = {}\npoint_value = {}\n[rules]\nrule = "migration"\n'


def in_ticks_of(contract, walk):
    "A walk on the grid of ES as one on another grid, tick for tick."
    return walk.assign(**{c: contract.to_prices(ES.to_ticks(walk[c])) for c in _PRICES})


def traded(bars, contract):
    bars = front_month(bars, contract)
    signals = make_signals(session_levels(bars, contract=contract), SignalRules(rule='migration', tick_size=contract.tick_size))
    return run_backtest(bars, signals, contract=contract).trades


@pytest.mark.parametrize('symbol, tick', [('CL', .01), ('GC', .1), ('6E', .00005), ('6J', .0000005), ('SPX', .01), ('YM', 1.)])
def test_a_contract_of_ones_own_is_traded_as_any(symbol, tick):
    "The same walk in ticks of another size, each worth as many dollars as a tick of ES, makes the same trades to the cent."
    walk, own = random_walk(120, bars_per_session=78, seed=5), ContractSpec(symbol, tick, 12.5 / tick)
    theirs, ours = traded(walk, ContractSpec('ES', .25, 50.)), traded(in_ticks_of(own, walk), own)
    assert len(ours) == len(theirs) >= 20 and (ours.contracts == theirs.contracts).all()
    assert ours.net.to_numpy() == pytest.approx(theirs.net.to_numpy(), abs=.005)
    assert (ours.entry / tick).to_numpy() == pytest.approx((theirs.entry / .25).to_numpy())


def test_a_contract_of_ones_own_by_the_command(here, tmp_path):
    "What the table says is traded, kept and read back, and the settings of the run make the run again."
    own = ContractSpec('6E', .00005, 250_000.)
    export(in_ticks_of(own, random_walk(60, bars_per_session=13, seed=5)), tmp_path/'6E_30min.csv')
    (tmp_path/'own.toml').write_text(TABLE.format('6e', .00005, 250_000))
    done = here(data='6E_30min.csv', config='own.toml', symbol='6e', out='own')
    assert done.returncode == 0, done.stderr
    ours = load_run(tmp_path/'own')
    assert ours.config.contract == own and ours.manifest['contract']['point_value'] == 250_000 and ours.metrics['data']['symbol'] == '6E' and len(ours.trades)
    assert load_results(tmp_path/'own')['rule'].contract == own
    t = ours.trades
    assert t.gross.to_numpy() == pytest.approx((t.side * (t.exit - t.entry) * t.contracts * 250_000).to_numpy(), abs=.005)
    again = here(data='6E_30min.csv', config='own/config.toml', out='again')
    assert again.returncode == 0 and (tmp_path/'again/trades.csv').read_bytes() == (tmp_path/'own/trades.csv').read_bytes(), again.stderr


def test_hours_of_ones_own(here, tmp_path):
    "Crude oil from 08:00 to 13:30 in Chicago: those bars make the levels, the others do not."
    walk = random_walk(60, bars_per_session=78)
    (tmp_path/'cl.toml').write_text('[contract]\nsymbol = "CL"\ntick_size = 0.25\npoint_value = 50\nrth_open = "10:00"\nrth_close = "13:30"\ntz = "America/Chicago"\n')
    export(walk, tmp_path/'CL.csv')
    done = here(data='CL.csv', config='cl.toml')
    assert done.returncode == 0, done.stderr
    levels = load_run(tmp_path/'out').levels
    assert set(levels.n_bars) == {42} and set(levels.first_ts.dt.strftime('%H:%M')) == {'11:00'} and set(levels.last_ts.dt.strftime('%H:%M')) == {'14:25'}
    assert '60 complete sessions' in done.stderr or 'incomplete' not in done.stderr


@pytest.mark.parametrize('command', [main, train_main])
def test_symbols_and_tables_that_cannot_be(here, tmp_path, command):
    export(WALK, tmp_path/'bars.csv')
    for text, symbol, said in [('', 'GC', ("symbol 'GC' is not known", 'a line [contract]', 'symbol = "GC"')), ('[contract]\nsymbol = "GC"\n', None, ('not known here, and has no tick_size',)),
                               (TABLE.format('GC', .1, 100), 'CL', ('--symbol CL', 'which describes GC', 'leave one of them out')), (TABLE.format('GC', -.1, 100), None, ('tick_size=-0.1 must be above 0',)),
                               (TABLE.format('GC', .1, '"much"'), None, ('contract.point_value',)), ('[contract]\nsymbol = "ES"\ntick = 1\n', None, ("no setting 'tick'",))]:
        (tmp_path/'my.toml').write_text(text)
        check_mended(here(command, data='bars.csv', config='my.toml', symbol=symbol), *said)


def test_the_sample_market_is_no_other(here): check_mended(here(symbol='NQ'), 'the sample market is that of ES, not NQ', '--data')


@pytest.mark.parametrize('zone, late, said', [('America/Chicago', 0, '--tz America/Chicago'), (_ZONE, 30, '--stamp end'), ('Europe/Berlin', 0, '--tz Europe/Berlin'), ('UTC', 0, '--tz UTC')])
def test_regular_hours_on_another_clock(here, tmp_path, zone, late, said):
    export(WALK, tmp_path/'bars.csv', zone, late=late)
    check_mended(here(data='bars.csv'), said, 'the regular hours of ES are 09:30 to 16:00')
    mended = here(data='bars.csv', **{said.split()[0][2:]: said.split()[1]})
    assert mended.returncode == 0 and load_run(tmp_path/'out').levels.n_bars.unique().tolist() == [13], mended.stderr


@pytest.mark.skipif(not shared.exists(), reason='the folder of real data is not here')
def test_real_minutes_on_another_clock(here, tmp_path):
    "Real days of ES, regular hours only, as a platform in Chicago writes them; and the whole day and night, which were told apart before."
    bars = read_bars(shared/'es_1min_2013_2020.parquet')[0].query("contract == 'ES 12-13'")
    regular = bars.between_time('09:30', '15:59')
    export(regular, tmp_path/'regular.csv', 'America/Chicago')
    check_mended(here(data='regular.csv'), '08:30 to 15:00 in America/New_York', '--tz America/Chicago')
    assert (read_bars(tmp_path/'regular.csv', tz='America/Chicago')[0].index == regular.index).all()
    assert (read_bars(export(regular, tmp_path/'right.csv'))[0].index == regular.index).all()


def test_where_the_vix_comes_from(here, tmp_path):
    said = lambda done: next(line for line in done.stderr.splitlines() if line.startswith('VIX'))
    export(WALK, tmp_path/'DATA/ES/bars.csv', vix_close=np.round(15 + np.arange(len(WALK)) / 100, 2), open_interest=7)
    beside = here(out='a')
    assert beside.returncode == 0 and 'the column of the bars' in said(beside) and '60 of 60 sessions' in said(beside), beside.stderr
    assert 'column not used: open_interest' in beside.stderr and load_run(tmp_path/'a').metrics['data']['vix_closes'] == 60
    (tmp_path/'DATA/daily').mkdir()
    (tmp_path/'DATA/daily/cboe_Vix_history.csv').write_text('DATE,CLOSE\n01/02/2015,17.79\n01/05/2015,19.92\n')
    (tmp_path/'DATA/.hidden').mkdir()
    (tmp_path/'DATA/.hidden/notes.csv').write_text('buy low')
    (tmp_path/'DATA/README.md').write_text('mine')
    (tmp_path/'DATA/ES/old.pdf').touch()
    found = here(out='b')
    assert 'daily/cboe_Vix_history.csv' in said(found) and '2 of 60 sessions' in said(found) and 'left out: ES/old.pdf)' in found.stderr, found.stderr
    about = load_run(tmp_path/'b').metrics['data']
    assert about['vix_closes'] == 2 and 'cboe_Vix_history.csv' in about['vix_from'] and about['vix_from'] in (tmp_path/'b/report.html').read_text()
    (tmp_path/'mine.csv').write_text('date,VIXCLS\n2015-01-02,17.79\n')
    given = here(vix='mine.csv', out='c')
    assert 'mine.csv' in said(given) and '1 of 60 sessions' in said(given) and 'left out: ES/old.pdf, daily/cboe_Vix_history.csv' in given.stderr, given.stderr
    export(WALK, tmp_path/'plain.csv')
    none = here(data='plain.csv', out='d')
    assert 'none found: the filter has no features of the VIX' in said(none) and '--vix' in said(none)


@pytest.mark.parametrize('column', ['VIX', 'vix close', 'VIX_Close', 'VIXCLS', 'vix_last', '^VIX', 'VIX.Close', '$VIX.X'])
def test_spellings_of_the_vix(tmp_path, column):
    market = load_market(export(WALK, tmp_path/'bars.csv', **{column: 15.5}))
    assert set(market.vix) == {15.5} and len(market.vix) == 60 and 'not used' not in market.how


def test_files_with_vix_in_their_names(tmp_path):
    "In a folder they hold the VIX, unless they hold bars with a VIX beside them."
    export(WALK[:390], tmp_path/'d/ES_VIX_merged.csv', vix=14.), export(WALK[390:], tmp_path/'d/es.csv', vix=15.)
    (tmp_path/'d/zVIX.csv').write_text('date,close\n2015-01-02,17.79\n')
    market = load_market(tmp_path/'d')
    assert len(market.bars) == len(WALK) and market.vix.to_dict() == {pd.Timestamp('2015-01-02'): 17.79} and market.vix_from.startswith('zVIX.csv; the column of the bars is not used')
    (tmp_path/'d/zVIX.csv').unlink()
    assert load_market(tmp_path/'d').vix.tolist() == [14.] * 30 + [15.] * 30


def test_a_data_folder_with_folders_in_it(tmp_path):
    "Contracts by year, as people keep them; rejects and corrections name the subfolder."
    for k, year in enumerate(('2014', '2015')): export(WALK[390 * k:390 * (k + 1)], tmp_path/f'DATA/{year}/bars.csv')
    torn = tmp_path/'DATA/2015/bars.csv'
    lines = torn.read_text().splitlines()
    torn.write_text('\n'.join([*lines[:5], lines[5].replace(',', ',-', 1), *lines[6:]]))
    done = run('--out', 'out', cwd=tmp_path)
    assert done.returncode == 0 and '2 files: firstrate' in done.stderr, done.stderr
    rejects = load_run(tmp_path/'out').rejects
    assert rejects.file.tolist() == ['2015/bars.csv'] and rejects.line.tolist() == [6]
    rejects.assign(correction=lines[5]).to_csv(tmp_path/'DATA/corrections.csv', index=False)
    assert len(read_bars(tmp_path/'DATA')[0]) == len(WALK)
    assert run('--data', '.', '--out', 'more', cwd=tmp_path).returncode == 0  # what the first run wrote is no bars


@pytest.mark.parametrize('header, layout', [('timestamp', 'firstrate'), ('time', 'generic')])
def test_what_is_assumed_is_said(here, tmp_path, header, layout):
    export(WALK, tmp_path/'bars.csv', header=header)
    words = 'zone and stamp assumed, the file does not say: if wrong, use --tz America/Chicago or --stamp end'
    done = here(data='bars.csv')
    assert done.returncode == 0 and f'{layout}, times in America/New_York, stamped at their open ({words})' in done.stderr, done.stderr
    assert words in load_run(tmp_path/'out').metrics['data']['read_as'] and words in (tmp_path/'out/report.html').read_text()
    named = here(data='bars.csv', tz=_ZONE, out='named')
    assert '(stamp assumed, the file does not say: if wrong, use --stamp end)' in named.stderr
    both = here(data='bars.csv', tz=_ZONE, stamp='open', out='both')
    assert 'assumed' not in both.stderr and 'assumed' not in json.loads((tmp_path/'both/metrics.json').read_text())['data']['read_as']


def test_help_says_where_the_vix_is_looked_for():
    said = ' '.join(subprocess.run([command, '--help'], capture_output=True, text=True, env=os.environ | {'COLUMNS': '100'}).stdout.split())
    assert 'one with VIX in its name in the folder of the bars, else their column VIX' in said and 'table [contract]' in said
