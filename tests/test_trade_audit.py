"""Lists of trades and their audit: formats and round trips, matching against a twin, fills of the engine, forged fills, faulty lists, the command."""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vpoc_backtest.audit_cli import audit_main
from vpoc_backtest.backtest import BacktestConfig, prepare_bars, run_backtest
from vpoc_backtest.data import MES, BadData, ContractSpec, random_walk, sample_market
from vpoc_backtest.readers import read_bars
from vpoc_backtest.rolls import front_month
from vpoc_backtest.signals import SignalRules, make_signals
from vpoc_backtest.trade_audit import audit_trades
from vpoc_backtest.trade_fills import _judged_fills, _market_clock
from vpoc_backtest.trade_lists import read_trades
from vpoc_backtest.vpoc import session_levels

shared = Path(__file__).parents[2]/'shared/data'
SAME = ['side', 'contracts', 'entry_ts', 'entry', 'exit_ts', 'exit']


def engine(bars, config=BacktestConfig(), rule='migration', **rules):
    return run_backtest(bars, make_signals(session_levels(bars), SignalRules(rule=rule, **rules)), config)


def through_csv(result, place, **columns):
    "The trades of a result, as a list that somebody exports, read back."
    path = place/'list.csv'
    result.trades.assign(entry_type='limit', **columns).to_csv(path, index=False)
    return read_trades(path)[0]


@pytest.fixture(scope='module')
def walk(): return random_walk(200, seed=11)


@pytest.fixture(scope='module')
def on_walk(walk): return engine(walk)


@pytest.fixture(scope='module')
def sample(): return sample_market()[0]


@pytest.fixture(scope='module')
def on_sample(sample): return engine(sample)


@pytest.fixture(scope='module')
def dollar_bars():
    if not shared.exists(): pytest.skip('no real data')
    return front_month(read_bars(shared/'es_dollar_bars_2015_2016.parquet', stamp='end')[0])


@pytest.fixture(scope='module')
def on_dollar_bars(dollar_bars): return engine(dollar_bars)


# The same trades as each platform writes them

def american(ts): return f'{ts.month}/{ts.day}/{ts.year} {ts.hour % 12 or 12}:{ts:%M:%S %p}'


def ninjatrader(t, zone='America/New_York', seconds=True):
    at = lambda ts: american(ts.tz_convert(zone))
    head = ('Trade number,Instrument,Account,Strategy,Market pos.,Qty,Entry price,Exit price,Entry time,Exit time,Entry name,Exit name,Profit,'
            'Cum. net profit,Commission,Clearing Fee,Exchange Fee,IP Fee,NFA Fee,MAE,MFE,ETD,Bars,')
    return [head] + [f'{i + 1},ES 03-15,Sim101,,{"Long" if r.side > 0 else "Short"},{r.contracts},{r.entry},{r.exit},{at(r.entry_ts)},{at(r.exit_ts)},'
                     f'Entry,Exit,"${r.net:,.2f}",$0.00,${r.costs - .04:.2f},$0.01,$0.01,$0.01,$0.01,$0.00,$0.00,$0.00,{r.bars},' for i, r in enumerate(t.itertuples())]


def tradingview(t, new):
    head = ('Trade number,Type,Date and time,Signal,Price USD,Size (qty),Size (value),Net P&L USD,Net P&L %' if new else
            'Trade #,Type,Signal,Date/Time,Price,Contracts,Profit,Profit %')
    rows = []
    for i, r in enumerate(t.itertuples(), 1):
        way = 'long' if r.side > 0 else 'short'
        halves = [(f'Entry {way}', r.entry_ts, r.entry), (f'Exit {way}', r.exit_ts, r.exit)]
        for kind, ts, price in halves[::-1] if new else halves:
            stamp = ts.strftime('%Y-%m-%d %H:%M')
            rows.append(f'{i},{kind},{stamp},S,{price},{r.contracts},0,{r.net:.2f},0' if new else
                        f'{i},{kind},S,{stamp},{price},{r.contracts},{r.net:.2f},0')
    return [head] + rows


def interactive_brokers(t, german=False):
    head = ('Transaktionen,Header,DataDiscriminator,Anlagekategorie,Währung,Symbol,Datum/Zeit,Menge,T.-Kurs,Schlusskurs,Erlös,Provision/Gebühr,Basis,Realisierter G/V,MTM G/V,Code'
            if german else 'Trades,Header,DataDiscriminator,Asset Category,Currency,Symbol,Date/Time,Quantity,T. Price,C. Price,Proceeds,Comm/Fee,Basis,Realized P/L,MTM P/L,Code')
    rows = ['Statement,Header,Field Name,Field Value', 'Statement,Data,Period,"January 1, 2015 - December 31, 2015"', head]
    for r in t.itertuples():
        for ts, size, price, code in ((r.entry_ts, r.side * r.contracts, r.entry, 'O'), (r.exit_ts, -r.side * r.contracts, r.exit, 'C;P')):
            rows.append(f'{head.split(",")[0]},Data,Order,Futures,USD,ESH5,"{ts:%Y-%m-%d, %H:%M:%S}",{size},{price},0,0,{-r.costs / 2:.4f},0,0,0,{code}')
    return [*rows, 'Interest,Header,Currency,Date,Description,Amount']


def flex(t):
    rows = ['"ClientAccountID","AssetClass","Symbol","DateTime","Buy/Sell","Quantity","TradePrice","IBCommission","Open/CloseIndicator"']
    for r in t.itertuples():
        for ts, way, price, code in ((r.entry_ts, r.side, r.entry, 'O'), (r.exit_ts, -r.side, r.exit, 'C')):
            rows.append(f'"U1","FUT","ESH5","{ts:%Y%m%d;%H%M%S}","{"BUY" if way > 0 else "SELL"}","{way * r.contracts}","{price}","{-r.costs / 2:.4f}","{code}"')
    return rows


def ninjatrader_executions(t):
    rows = []
    for i, r in enumerate(t.itertuples()):
        for k, (ts, way, price) in enumerate(((r.entry_ts, r.side, r.entry), (r.exit_ts, -r.side, r.exit))):
            rows.append(f'ES 03-15,{"Buy" if way > 0 else "Sell"},{r.contracts},{price},{american(ts)},{i}{k},{"Exit" if k else "Entry"},-,o{i},x,${r.costs / 2:.4f},1,Sim,Sim,')
    return ['Instrument,Action,Quantity,Price,Time,ID,E/X,Position,Order ID,Name,Commission,Rate,Account,Connection,'] + rows[::-1]  # newest first


def spreadsheet(t):
    number = lambda x: f'{x:,.2f}'.replace(',', ' ').replace('.', ',').replace(' ', '.')
    rows = [f'{"buy" if r.side > 0 else "sell"};{r.contracts};{r.entry_ts:%d.%m.%Y %H:%M};{number(r.entry)};{r.exit_ts:%d.%m.%Y %H:%M};{number(r.exit)};{number(r.costs)}'
            for r in t.itertuples()]
    return ['Side;Qty;Entry time;Entry price;Exit time;Exit price;Fees', *rows]


WRITERS = {
    'ninjatrader': ninjatrader, 'tradingview': lambda t: tradingview(t, False), 'tradingview new': lambda t: tradingview(t, True),
    'interactive brokers': interactive_brokers, 'interactive brokers, German': lambda t: interactive_brokers(t, True), 'flex': flex,
    'ninjatrader executions': ninjatrader_executions, 'spreadsheet': spreadsheet}


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
@pytest.mark.parametrize('name', WRITERS)
def test_every_platform_gives_the_same_trades(name, encoding, on_walk, tmp_path):
    t = on_walk.trades.assign(entry_ts=on_walk.trades.entry_ts + pd.Timedelta('7s') * int('ninja' in name),
                              exit_ts=on_walk.trades.exit_ts + pd.Timedelta('9s') * int('ninja' in name))
    path = tmp_path/'list.csv'
    path.write_bytes('\r\n'.join(WRITERS[name](t) + ['']).encode(encoding))
    trades, rejects = read_trades(path)
    assert not len(rejects), rejects
    pd.testing.assert_frame_equal(trades[SAME].reset_index(drop=True), t[SAME].reset_index(drop=True), check_dtype=False)
    np.testing.assert_allclose(trades.costs, t.costs, atol=.006)
    assert set(trades.contract) == ({'ES 03-15'} if 'ninja' in name or 'brokers' in name or name == 'flex' else {''})


def test_a_zone_is_taken_from_the_option(on_walk, tmp_path):
    t = on_walk.trades.assign(entry_ts=on_walk.trades.entry_ts + pd.Timedelta('7s'), exit_ts=on_walk.trades.exit_ts + pd.Timedelta('9s'))
    path = tmp_path/'list.csv'
    path.write_text('\n'.join(ninjatrader(t, 'Europe/Berlin')))
    trades = read_trades(path, tz='Europe/Berlin')[0]
    pd.testing.assert_frame_equal(trades[SAME].reset_index(drop=True), t[SAME].reset_index(drop=True), check_dtype=False)


def test_times_without_seconds_are_ends_of_bars_in_ninjatrader(on_walk, tmp_path):
    later = on_walk.trades.assign(entry_ts=on_walk.trades.entry_ts + pd.Timedelta('1min'), exit_ts=on_walk.trades.exit_ts + pd.Timedelta('1min'))
    path = tmp_path/'list.csv'
    path.write_text('\n'.join(ninjatrader(later)))
    trades, opens = read_trades(path)[0], read_trades(path, stamp='open')[0]
    pd.testing.assert_series_equal(trades.entry_ts, on_walk.trades.entry_ts, check_index=False, check_index_type=False)
    assert (opens.entry_ts.to_numpy() == later.entry_ts.to_numpy()).all() and (trades.span == pd.Timedelta('1min')).all()


@pytest.mark.parametrize('packed', ['gz', 'zip'])
def test_a_packed_list(packed, on_walk, tmp_path):
    import gzip
    import zipfile
    text = '\n'.join(spreadsheet(on_walk.trades)).encode()
    path = tmp_path/f'list.csv.{packed}'
    if packed == 'gz': path.write_bytes(gzip.compress(text))
    else:
        with zipfile.ZipFile(path, 'w') as z: z.writestr('list.csv', text)
    assert len(read_trades(path)[0]) == len(on_walk.trades)


# Matching, against a twin that trades single contracts

def twin_matching(fills):
    "Total profit in points, and contracts left open, of (side, contracts, price), one contract at a time, first in, first out."
    waiting, profit, pieces = [], 0., 0
    for side, size, price in fills:
        for _ in range(size):
            if waiting and waiting[0][0] == -side:
                before, paid = waiting.pop(0)
                profit += before * (price - paid)
                pieces += 1
            else: waiting.append((side, price))
    return profit, pieces, len(waiting)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([1, -1]), st.integers(1, 5), st.integers(4000, 4040)), min_size=2, max_size=30))
def test_matching_equals_a_twin(fills):
    fills = [(side, size, ticks / 4) for side, size, ticks in fills]
    start = pd.Timestamp('2015-03-02 09:30:05')
    rows = [f'{start + pd.Timedelta(k, "min"):%Y-%m-%d %H:%M:%S},ES 03-15,{"buy" if side > 0 else "sell"},{size},{price},1.50' for k, (side, size, price) in enumerate(fills)]
    profit, pieces, left = twin_matching(fills)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place)/'fills.csv'
        path.write_text('\n'.join(['Time,Symbol,Side,Qty,Price,Commission', *rows]))
        if not pieces:
            with pytest.raises(BadData, match='still open'): read_trades(path)
            return
        trades, rejects = read_trades(path)
    assert (trades.side * (trades.exit - trades.entry) * trades.contracts).sum() == pytest.approx(profit)
    assert trades.contracts.sum() == pieces and len(rejects) <= left and (left > 0) == (len(rejects) > 0)
    open_costs = sum(1.5 * float(reason.split(': ')[1].split()[0]) / float(reason.split('of its ')[1].split()[0]) for reason in rejects.reason)
    assert trades.costs.sum() == pytest.approx(1.5 * len(fills) - open_costs)


# Fills: what the engine makes is possible, and what is forged is found out

CONFIGS = {'default': BacktestConfig(), 'touched limits': BacktestConfig(limit_through=0), 'no slippage': BacktestConfig(slippage_ticks=0),
           'overnight': BacktestConfig(hold='overnight'), 'three ticks': BacktestConfig(slippage_ticks=3, limit_through=3), 'by path': BacktestConfig(ambiguous='path')}


def all_possible(bars, config, place, rule='migration', result=None):
    result = engine(bars, config, rule) if result is None else result
    trades = through_csv(result, place)
    fills = _judged_fills(trades, _market_clock(prepare_bars(bars)), config)
    assert set(fills.verdict) == {'possible'}, fills[fills.verdict != 'possible'].to_string()
    assert len(fills) == 2 * len(result.trades) > 0
    return trades


@pytest.mark.parametrize('name', CONFIGS)
@pytest.mark.parametrize('seed', range(3))
def test_fills_of_the_engine_are_possible_on_walks(name, seed, tmp_path): all_possible(random_walk(120, seed=seed), CONFIGS[name], tmp_path)


@pytest.mark.parametrize('minutes', [5, 30])
def test_fills_of_the_engine_are_possible_on_longer_bars(minutes, tmp_path):
    trades = all_possible(random_walk(250, 390 // minutes, seed=2), BacktestConfig(), tmp_path)
    if len(trades) >= 10: assert trades.span[0] == pd.Timedelta(minutes, 'min')


@pytest.mark.parametrize('rule', ['migration', 'trend'])
def test_fills_of_the_engine_are_possible_on_the_sample_market(rule, sample, on_sample, tmp_path):
    all_possible(sample, BacktestConfig(), tmp_path, rule, on_sample if rule == 'migration' else None)


@pytest.mark.skipif(not shared.exists(), reason='no real data')
@pytest.mark.parametrize('file', ['es_dollar_bars_2015_2016.parquet', 'es_volume_bars_2015_2016.parquet'])
def test_fills_of_the_engine_are_possible_on_real_bars(file, tmp_path):
    bars = front_month(read_bars(shared/file, stamp='end')[0])
    for name in ('default', 'overnight'): all_possible(bars, CONFIGS[name], tmp_path)


def exported(name, trades, place):
    "A list of trades as a platform writes it, read back; NinjaTrader stamps minutes with their end."
    later = pd.Timedelta('1min') * int('ninja' in name and not trades.entry_ts.dt.second.any())
    path = place/'exported.csv'
    path.write_text('\n'.join(WRITERS[name](trades.assign(entry_ts=trades.entry_ts + later, exit_ts=trades.exit_ts + later))))
    return read_trades(path)[0].assign(contract='')  # the bars have another one than the writers say


@pytest.mark.parametrize('name', WRITERS)
@pytest.mark.parametrize('market', ['walk', 'dollar_bars'])
def test_every_platform_exports_possible_fills(name, market, request, tmp_path):
    bars, result = (request.getfixturevalue(f) for f in (market, f'on_{market}'))
    costs = 4.5 * result.trades.contracts if 'trading' in name else result.trades.costs  # its list does not name them
    trades = exported(name, result.trades.assign(costs=costs, net=result.trades.gross - costs), tmp_path)
    audit = audit_trades(trades, bars, n=10, nulls=2)
    assert (audit.fills.verdict == 'possible').all() and len(audit.fills) == 2 * len(result.trades)
    assert f'{len(audit.fills)} were possible.' in audit.sentences()[0]
    if name != 'spreadsheet' and 'brokers' not in name and name != 'flex' and 'executions' not in name:  # they state a profit
        odd = trades.index % 10 == 3
        edited = audit_trades(trades.assign(entry=trades.entry - .25 * trades.side * odd), bars, n=10, nulls=2).fills
        assert (edited.trade[edited.reason == 'profit in the list off by 1 tick'] == np.flatnonzero(odd)).all()
        assert set(edited.trade[edited.verdict != 'possible']) == {*np.flatnonzero(odd)}


def test_the_share_that_is_found_is_the_share_that_is_said(on_walk, walk, tmp_path):
    "Of 300 lists with a tenth of the fills a tick too good, about as many are found as the audit says would be."
    trades = exported('spreadsheet', on_walk.trades, tmp_path)
    for kind in ('limit', ''):
        audit = audit_trades(trades.assign(entry_type=kind), walk, n=10, nulls=2)
        seen = (audit.fills.if_better != 'possible').to_numpy().reshape(-1, 2)
        found = [bool((np.random.default_rng(k).random(seen.shape) < .1)[seen].any()) for k in range(300)]
        clock = _market_clock(prepare_bars(walk))
        judged = [(_judged_fills(improved(trades.assign(entry_type=kind), np.random.default_rng(k)), clock, BacktestConfig()).verdict != 'possible').any()
                  for k in range(20)]
        assert judged == found[:20]
        told = next(s for s in audit.sentences() if 'This check sees' in s)
        count = seen.sum()
        assert f'it would question {count or "none"} of these {seen.size}' in told
        assert abs(np.mean(found) - (1 - .9**count)) < .08 and ('it finds out' in told) == (count > 0)


def test_trades_of_a_run(on_walk, walk, tmp_path):
    "The library's own trades.csv: entries are known to be limits, R is known, two strategies are not mixed."
    path = tmp_path/'trades.csv'
    both = pd.concat({'original': on_walk.trades, 'ml': on_walk.trades.iloc[::2]}, names=['strategy']).reset_index(level=0)
    both.to_csv(path, index=False)
    with pytest.raises(BadData, match='holds the trades of original and of ml, many of them twice'): read_trades(path)
    both[both.strategy == 'ml'].to_csv(path, index=False)
    trades = read_trades(path)[0]
    assert (trades.layout == 'vpoc_backtest').all() and (trades.entry_type == 'limit').all() and set(trades.exit_type) <= {'limit', 'stop', 'market'}
    audit = audit_trades(trades, walk, n=10, nulls=2)
    assert (audit.fills.verdict == 'possible').all() and audit.unit == 'R'


def test_days_that_bars_lack_are_not_held_against_a_list(on_walk, walk, tmp_path):
    "Without every third session of the bars, their fills are not covered; the others stay possible, and 20 trades are too few."
    days = pd.unique(walk.index.normalize())
    holed = walk[walk.index.normalize().isin(days[np.arange(len(days)) % 3 > 0])]
    trades = through_csv(on_walk, tmp_path)
    audit = audit_trades(trades, holed, n=10, nulls=2)
    lacking = ~audit.fills.ts.dt.normalize().isin(holed.index.normalize())
    assert lacking.any() and (audit.fills.verdict[lacking] == 'not covered').all() and (audit.fills.verdict[~lacking] == 'possible').all()
    few = audit_trades(trades, walk[walk.index < on_walk.trades.entry_ts.iloc[20].normalize()], n=10, nulls=2)
    assert few.recommendation == 'Too few trades to tell.' and any(s.startswith('Only 20 trades could be compared') for s in few.sentences())


def improved(trades, rng, share=.1):
    "The list with a share of its fills better by a tick."
    chosen = rng.random((len(trades), 2)) < share
    return trades.assign(entry=trades.entry - chosen[:, 0] * trades.side * .25, exit=trades.exit + chosen[:, 1] * trades.side * .25)


def forged_lists_found(bars, place, lists=20, result=None):
    trades = all_possible(bars, BacktestConfig(), place, result=result)
    clock = _market_clock(prepare_bars(bars))
    found = [set(_judged_fills(improved(trades, np.random.default_rng(k)), clock, BacktestConfig()).verdict) != {'possible'} for k in range(lists)]
    return sum(found)


def test_a_tenth_of_the_fills_better_by_a_tick_is_found_out_on_the_sample_market(sample, on_sample, tmp_path):
    assert forged_lists_found(sample, tmp_path, result=on_sample) == 20


def test_a_tenth_of_the_fills_better_by_a_tick_is_found_out_on_real_bars(dollar_bars, tmp_path): assert forged_lists_found(dollar_bars, tmp_path) >= 18


def test_verdicts_equal_a_twin(walk):
    "Plain comparison with the bar of the minute, for fills of unknown kind scattered around it."
    rng = np.random.default_rng(3)
    at = np.sort(rng.choice(len(walk) - 400, 300, replace=False))
    until = at + rng.integers(1, 300, 300)
    side = rng.choice([-1, 1], 300)
    price = lambda i: walk.close.to_numpy()[i] + rng.integers(-12, 13, 300) * .25
    trades = pd.DataFrame({'side': side, 'contracts': 1, 'entry_ts': walk.index[at], 'entry': price(at), 'exit_ts': walk.index[until], 'exit': price(until)})
    audit = audit_trades(trades, walk, n=10, nulls=2)
    for f in audit.fills.itertuples():
        bar = walk.loc[f.ts]
        outside = f.price < bar.low if f.side > 0 else f.price > bar.high
        far = f.price > bar.high + .25 if f.side > 0 else f.price < bar.low - .25
        assert f.verdict == ('impossible' if outside or far else 'possible')
        assert (f.low, f.high, f.bar) == (bar.low, bar.high, f.ts)


def test_orders_of_a_known_kind(walk):
    "A limit at the extreme of its bar, one at the open, one traded through; a stop better than its price, one at it, one slipped."
    i = int(np.flatnonzero((walk.open - walk.low >= .5) & (walk.high - walk.open >= .5))[50])
    bar, after = walk.iloc[i], i + 30
    def verdict(way, **changes):
        row = {'side': 1, 'contracts': 1, 'entry_ts': walk.index[i], 'entry': bar.open, 'exit_ts': walk.index[after], 'exit': walk.close.iloc[after]} | changes
        fills = audit_trades(pd.DataFrame([row]), walk, n=5, nulls=1).fills.set_index('fill')
        return fills.verdict[way]
    assert verdict('entry', entry=bar.low, entry_type='limit') == 'doubtful' and verdict('entry', entry=bar.low) == 'possible'
    assert verdict('entry', entry=bar.low + .25, entry_type='limit') == verdict('entry', entry_type='limit') == 'possible'
    assert verdict('entry', side=-1, entry=bar.high, entry_type='limit') == 'doubtful' and verdict('entry', side=-1, entry=bar.high - .25, entry_type='limit') == 'possible'
    left = {'exit_ts': walk.index[i], 'entry_ts': walk.index[i], 'exit_type': 'stop', 'stop': bar.open, 'entry': bar.high}
    assert [verdict('exit', exit=bar.open + move, **left) for move in (.25, 0, -.25)] == ['doubtful', 'possible', 'possible']
    assert verdict('entry', entry=bar.low + .1) == 'impossible' and verdict('entry', entry=bar.low + .1, contracts=2) == 'doubtful'
    assert verdict('entry', entry=bar.high + .25) == 'possible' and verdict('entry', entry=bar.high + .5) == 'impossible'


# Chance, against a twin

def test_random_days_equal_a_twin(walk):
    "The mean over very many random days is the mean over all sessions, worked out trade by trade."
    a = np.array([400, 450, 4000])  # two trades of one session, one of another
    b = a + [100, 200, 30]
    trades = pd.DataFrame({'side': [1, -1, 1], 'contracts': [1, 2, 1], 'entry_ts': walk.index[a], 'entry': walk.open.to_numpy()[a],
                           'exit_ts': walk.index[b], 'exit': walk.close.to_numpy()[b], 'costs': [5., 6, 7]})
    audit = audit_trades(trades, walk, n=40_000, nulls=2)
    dollars = np.zeros(200)
    for r, i, j in zip(trades.itertuples(), a % 390, b % 390):
        for d in range(200): dollars[d] += r.side * r.contracts * 50 * (walk.close.iloc[390 * d + j] - walk.open.iloc[390 * d + i]) - r.costs
    error = audit.random.total_profit.std() / 200
    assert abs(audit.random.total_profit.mean() - dollars.mean()) < 4 * error
    # the first two are one day: they vary together
    pair = sum(r.side * r.contracts * 50 * (walk.close.to_numpy()[np.arange(200) * 390 + j] - walk.open.to_numpy()[np.arange(200) * 390 + i])
               for r, i, j in list(zip(trades.itertuples(), a % 390, b % 390))[:2])
    alone = 50 * (walk.close.to_numpy()[np.arange(200) * 390 + b[2] % 390] - walk.open.to_numpy()[np.arange(200) * 390 + a[2] % 390])
    assert audit.random.total_profit.std() == pytest.approx((pair.var() + alone.var())**.5, rel=.02)


def test_same_seed_same_audit(walk, on_walk, tmp_path):
    trades = through_csv(on_walk, tmp_path)
    first, second, other = (audit_trades(trades, walk, n=100, nulls=5, seed=s) for s in (1, 1, 2))
    pd.testing.assert_frame_equal(first.random, second.random)
    pd.testing.assert_frame_equal(first.tossed, second.tossed)
    assert not first.random.equals(other.random) and first.sentences() == second.sentences()


def test_a_planted_edge_is_worth_testing_and_a_coin_is_not(walk):
    rng = np.random.default_rng(8)
    day = np.arange(0, 200, 2)
    a = day * 390 + rng.integers(0, 200, 100)
    b = a + 60
    moved = walk.close.to_numpy()[b] - walk.open.to_numpy()[a]
    list_of = lambda side: pd.DataFrame({'side': side, 'contracts': 1, 'entry_ts': walk.index[a], 'entry': walk.open.to_numpy()[a],
                                         'exit_ts': walk.index[b], 'exit': walk.close.to_numpy()[b]})
    knowing = np.where(rng.random(100) < .75, np.where(moved > 0, 1, -1), rng.choice([-1, 1], 100))
    good, coin = (audit_trades(list_of(side), walk, n=400, nulls=60) for side in (knowing, rng.choice([-1, 1], 100)))
    assert good.recommendation.startswith('Worth testing') and good.p <= .05
    assert not coin.recommendation.startswith('Worth testing')
    assert good.unit == 'daily range' and 'The list has no costs' in ' '.join(good.sentences())
    assert np.allclose(good.result.trades.costs, 12.8)


def test_parts_of_one_entry_share_a_commission(walk):
    trades = pd.DataFrame({'side': 1, 'contracts': [1, 2], 'entry_ts': walk.index[[10, 10]], 'entry': walk.close.iloc[10], 'exit_ts': walk.index[[20, 30]],
                           'exit': walk.close.to_numpy()[[20, 30]]})
    assert audit_trades(trades, walk, n=10, nulls=2).result.trades.costs.tolist() == [5 + 2.8, 5 + 5.6]


def test_another_zone_is_named(walk, on_walk, tmp_path):
    t = on_walk.trades.assign(entry_ts=on_walk.trades.entry_ts + pd.Timedelta('7s'), exit_ts=on_walk.trades.exit_ts + pd.Timedelta('9s'))
    path = tmp_path/'list.csv'
    path.write_text('\n'.join(ninjatrader(t, 'America/Los_Angeles')))
    audit = audit_trades(read_trades(path)[0].assign(contract=''), walk, n=10, nulls=2)
    assert "tz='America/Los_Angeles' (--tz America/Los_Angeles)" in audit.clock and audit.clock in audit.sentences()
    moved = read_trades(path)[0].assign(contract='')
    moved = moved.assign(entry_ts=moved.entry_ts + pd.Timedelta('3.5h'), exit_ts=moved.exit_ts + pd.Timedelta('3.5h'))
    assert 'With all times 0.5 hours earlier' in audit_trades(moved, walk, n=10, nulls=2).clock
    for zone in ('Asia/Tokyo', 'Europe/Berlin'):
        path.write_text('\n'.join(ninjatrader(t, zone)))
        there = read_trades(path)[0].assign(contract='')
        try: told = audit_trades(there, walk, n=10, nulls=2).clock
        except BadData as e: told = str(e)  # all of them at night
        assert f"tz='{zone}'" in told, told


# Faulty lists: a sentence or a table of refused lines, never a traceback, and no line lost

PIECES = ['', ',', ';', '"', '-', 'x', '0', '9999999999', 'nan', 'Open', '\x00', 'é', '2013-10-07', '25:61', '1e400', '(', ')', '\t', '99/99/9999 9:00 PM', 'long', '$', '\n']


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(sorted(WRITERS)), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 12), st.sampled_from(PIECES)), min_size=1, max_size=6))
def test_a_faulty_list_is_told_in_a_sentence(name, changes):
    text = '\n'.join(WRITERS[name](FEW))
    for where, cut, piece in changes:
        at = int(where * len(text))
        text = text[:at] + piece + text[at + cut:]
    with tempfile.TemporaryDirectory() as place:
        path = Path(place)/'list.csv'
        path.write_text(text, encoding='utf-8')
        try: trades, rejects = read_trades(path)
        except BadData as e:
            assert 'list.csv' in str(e) and '\n' not in str(e)
            return
    assert (trades.exit_ts >= trades.entry_ts).all() and trades.side.isin([1, -1]).all() and (trades.contracts >= 1).all()
    if name != 'spreadsheet': return
    lines = text.split('\n')
    header = next(i for i, line in enumerate(lines) if 'Exit price' in line) if any('Exit price' in line for line in lines) else 0
    below = {i + 1 for i, line in enumerate(lines) if i > header and any(f.strip(' "\t') for f in line.split(';'))}
    assert below <= {*trades.line, *rejects.line}


stamps = pd.date_range('2015-03-02 09:31', periods=6, freq='50min', tz='America/New_York')
FEW = pd.DataFrame({'side': [1, -1, 1], 'contracts': [2, 1, 3], 'entry_ts': stamps[::2], 'entry': [2100., 2104.25, 2101.5], 'exit_ts': stamps[1::2],
                    'exit': [2103., 2102.25, 2099.75], 'costs': [5.6, 2.8, 8.4], 'net': [294.4, 97.2, -270.9], 'bars': 50})


def test_another_product_is_refused_by_name(tmp_path):
    path = tmp_path/'list.csv'
    path.write_text('\n'.join(ninjatrader(FEW)).replace('ES 03-15', 'NQ 03-15', 1))
    trades, rejects = read_trades(path)
    assert len(trades) == 2 and rejects.reason.tolist() == ['NQ 03-15 is not ES: use --symbol NQ'] and rejects.line.tolist() == [2]
    path.write_text('\n'.join(ninjatrader(FEW)).replace('ES 03-15', 'NQ 03-15'))
    with pytest.raises(BadData, match=r'list.csv, line 2: NQ 03-15 is not ES: use --symbol NQ \(all 3 rows are refused\)'): read_trades(path)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(-3000, 400_000), st.integers(0, 3000), st.integers(15_000, 25_000), st.integers(-60, 60), st.integers(1, 50),
                          st.sampled_from(['', 'limit', 'stop', 'market']), st.sampled_from([0, 1, 5])), min_size=1, max_size=12), st.booleans())
def test_any_list_has_an_audit(rows, stops):
    "Nights, weekends, holidays, times before and after the data, prices off the grid: always one verdict a fill, or a sentence why the bars tell nothing."
    start = WALK.index[0]
    at = [start + pd.Timedelta(minute, 'min') for minute, *_ in rows]
    trades = pd.DataFrame({
        'side': [1 if tick % 2 else -1 for _, _, tick, *_ in rows], 'contracts': [n for *_, n, _, _ in rows], 'entry_ts': pd.DatetimeIndex(at),
        'entry': [tick / 4 for _, _, tick, *_ in rows], 'exit_ts': pd.DatetimeIndex([t + pd.Timedelta(held, 'min') for t, (_, held, *_) in zip(at, rows)]),
        'exit': [tick / 4 + move / 10 for _, _, tick, move, *_ in rows], 'entry_type': [kind for *_, kind, _ in rows],
        'span': [pd.Timedelta(span, 'min') for *_, span in rows]})
    if stops: trades['stop'] = trades.entry - trades.side * 4
    try: audit = audit_trades(trades, WALK, n=20, nulls=2)
    except BadData as e:
        assert 'cover none of the' in str(e) or 'name bars of the contract that was traded' in str(e)
        return
    assert len(audit.fills) == 2 * len(rows) and audit.fills.verdict.isin(['possible', 'doubtful', 'impossible', 'not covered']).all()
    assert (audit.fills.reason[audit.fills.verdict != 'possible'] != '').all() and audit.sentences() and audit.unit == ('R' if stops else 'daily range')
    assert audit.result.trades.net.sum() == pytest.approx(audit.result.equity.iloc[-1] - 100_000)


WALK = random_walk(60, 78, seed=4)


def test_the_micro_on_bars_of_the_large_contract(walk, tmp_path):
    path = tmp_path/'list.csv'
    path.write_text('\n'.join(ninjatrader(FEW)).replace('ES 03-15', 'MES 03-15'))
    spec = ContractSpec('ES', .25, 5., fees=.37)
    trades, rejects = read_trades(path, contract=spec)
    assert len(trades) == 3 and not len(rejects)
    bars = (walk - [3000, 3000, 3000, 3000, 0]).assign(contract='ES 03-15')
    for contract in (spec, MES):
        audit = audit_trades(trades, bars, contract, n=10, nulls=2)
        assert not audit.fills.reason.str.contains('the bars are of').any() and audit.result.trades.gross.sum() == pytest.approx(5 * (6 + 2 - 5.25))
    with pytest.raises(BadData, match='MES 03-15 is not ES'): read_trades(path)


@pytest.mark.skipif(not shared.exists(), reason='no real data')
def test_contracts_over_a_real_roll(tmp_path):
    bars = front_month(read_bars(shared/'es_1min_2013_2020.parquet')[0])
    old, new = pd.unique(bars.contract.astype(str))[:2]
    rows = pd.concat([bars[bars.contract == name].iloc[500:560:20] for name in (old, new)])
    trades = pd.DataFrame({'side': 1, 'contracts': 1, 'entry_ts': rows.index, 'entry': rows.close.to_numpy(), 'exit_ts': rows.index, 'exit': rows.high.to_numpy(),
                           'contract': rows.contract.astype(str).to_numpy()})
    clock = _market_clock(prepare_bars(bars))
    fills = audit_trades(trades, bars, n=10, nulls=2).fills
    assert (fills.verdict == 'possible').all() and len(clock.opens) == len(bars)
    wrong = audit_trades(trades.assign(contract=old), bars, n=10, nulls=2).fills
    assert (wrong.verdict == 'not covered').sum() == 6 and wrong.reason.str.contains(f'the bars are of {new} there, the fill is of {old}').sum() == 6


# The command

def ask_here(place, capsys, monkeypatch, *args):
    "Exit code, standard output and error of the command, without a process of its own."
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, 'argv', ['vpoc_audit', *map(str, args)])
    try: audit_main()
    except SystemExit as end: return end.code or 0, *capsys.readouterr()
    return 0, *capsys.readouterr()


def ask(place, *args):
    command = Path(sys.executable).parent/'vpoc_audit'
    command = [command] if command.exists() else [sys.executable, '-c', 'from vpoc_backtest.audit_cli import audit_main; audit_main()']
    return subprocess.run([*command, *map(str, args)], cwd=place, capture_output=True, text=True, timeout=300)


def test_the_command(walk, on_walk, tmp_path, capsys, monkeypatch):
    walk.reset_index().to_parquet(tmp_path/'walk.parquet')
    (tmp_path/'mine.csv').write_text('\n'.join(spreadsheet(on_walk.trades)))
    few = ('--random', 50, '--nulls', 3)
    first = ask(tmp_path, 'mine.csv', '--data', 'walk.parquet', '--out', 'a', *few)
    assert first.returncode == 0, first.stderr
    assert ask_here(tmp_path, capsys, monkeypatch, 'mine.csv', '--data', 'walk.parquet', '--out', 'b', *few)[0] == 0
    assert first.stdout.rstrip().endswith('audit.html') and 'fills that the bars cover' in first.stdout
    assert {f.name for f in (tmp_path/'a').iterdir()} == {'fills.csv', 'rejects.csv', 'bar_rejects.csv', 'audit.json', 'audit.html'}
    for name in ('fills.csv', 'rejects.csv', 'audit.json', 'audit.html'): assert (tmp_path/'a'/name).read_bytes() == (tmp_path/'b'/name).read_bytes()
    figures = json.loads((tmp_path/'a/audit.json').read_text())
    assert figures['metrics']['trades'] == len(on_walk.trades) and figures['metrics']['total_profit'] == pytest.approx(on_walk.metrics['total_profit'])
    page = (tmp_path/'a/audit.html').read_text()
    assert 'http://' not in page.replace('http://www.w3.org', '') and 'https://' not in page and '<h2' in page


@pytest.mark.parametrize('args, said', [
    (['none.csv', '--data', 'walk.parquet'], 'there is no such file'), (['mine.csv'], 'name bars of the days of the list with --data'),
    (['mine.csv', '--data', 'gone'], '--data gone'), (['mine.csv', '--data', 'walk.parquet', '--tz', 'Mars'], 'is no time zone'),
    (['mine.csv', '--data', 'walk.parquet', '--symbol', 'ZZ'], 'is not known'), (['mine.csv', '--data', 'walk.parquet', '--random', '0'], 'must be 1 or more'),
    (['mine.csv', '--data', 'walk.parquet', '--out', '.'], 'holds something else'), (['walk.parquet', '--data', 'walk.parquet'], 'is not one text file'),
    (['mine.csv', '--data', 'mine.csv'], 'mine.csv'),
    (['early.csv', '--data', 'walk.parquet'], 'cover none of the'), (['half.csv', '--data', 'walk.parquet'], 'name bars of the contract that was traded'), (['mine.csv', '--nul', '3', '--layout', 'mine'], '')])
def test_the_command_says_what_is_wrong(args, said, on_walk, tmp_path, capsys, monkeypatch):
    random_walk(30, seed=1).reset_index().to_parquet(tmp_path/'walk.parquet')
    (tmp_path/'mine.csv').write_text('\n'.join(spreadsheet(on_walk.trades)))
    (tmp_path/'early.csv').write_text('\n'.join(spreadsheet(on_walk.trades.assign(entry_ts=stamps[0] - pd.Timedelta('900D'), exit_ts=stamps[1] - pd.Timedelta('900D')))))
    (tmp_path/'half.csv').write_text(f'{spreadsheet(FEW)[0]}\nbuy;1;05.01.2015 10:00;2.550,25;05.01.2015 11:00;2.551,00;5,00')
    here = {p.name for p in tmp_path.iterdir()}
    code, _, told = ask_here(tmp_path, capsys, monkeypatch, *args)
    lines = [line for line in told.splitlines() if not line.startswith(('list ', 'bars '))]
    assert code == 2 and said in told and len(lines) == 1 and lines[0].startswith('vpoc_audit: '), told
    assert {p.name for p in tmp_path.iterdir()} == here
