"""Order flow and the error of bar-made levels against plain Python that shares no code with them."""
from collections import defaultdict
from datetime import timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest

from vpoc_backtest.data import BadData, ContractSpec, add_sessions, sample_market
from vpoc_backtest.level_error import LevelError, expected_level_error, profile_error
from vpoc_backtest.order_flow import (
    ImbalanceRules,
    footprint,
    imbalances,
    plot_delta,
    plot_footprint,
    trade_delta,
)
from vpoc_backtest.parsing import bars_from_trades
from vpoc_backtest.trades import profile_from_trades
from vpoc_backtest.vpoc import LevelConfig

NEW_YORK = ZoneInfo('America/New_York')
shared = Path(__file__).parents[2]/'shared/data/es_trades_2013-09-03.parquet'
PERIODS = {'1min': 60, '5min': 300, '30min': 1800, '1h': 3600}


def random_trades(seed, sessions=25, per_session=70, sides='none'):
    "Trades of many sessions, day and night, some at the same time, with sides written in one of four ways."
    rng = np.random.default_rng(seed)
    n = sessions * per_session
    start = pd.Timestamp(rng.choice(['2020-03-04', '2019-10-30', '2021-06-01'])).value // 10**9
    at = start + np.sort(rng.integers(0, sessions * 86_400, n))
    ts = pd.to_datetime(at, unit='s', utc=True)
    price = (12_000 + np.cumsum(rng.integers(-2, 3, n) * (rng.random(n) < .6))) / 4
    trades = pd.DataFrame({'ts': ts, 'price': price, 'size': rng.integers(0, 30, n)})
    side = rng.integers(-1, 2, n)
    if sides == 'letters': trades['side'] = np.array(['A', 'N', 'B'])[side + 1]
    if sides == 'numbers': trades['side'] = side
    if sides == 'volumes':
        trades['BidVolume'] = rng.integers(0, trades['size'] + 1)
        trades['AskVolume'] = rng.integers(0, trades['size'] - trades['BidVolume'] + 1)
    return trades


def day_and_segment(moment):
    "Trade date and segment of a moment, by the clock of New York."
    wall = moment.astimezone(NEW_YORK)
    date = wall.date() + timedelta(days=1) if wall.hour >= 18 else wall.date()
    minutes = wall.hour * 60 + wall.minute
    return date, 'RTH' if 570 <= minutes < 960 else 'ETH'


def plain_sides(trades):
    "(moment, tick, bid, ask, unknown, date, segment) of each trade."
    out, last_price, last_side, session = [], None, 0, None
    for row in trades.to_dict('records'):
        date, segment = day_and_segment(row['ts'].to_pydatetime())
        if date != session: session, last_price, last_side = date, None, 0
        if last_price is not None and row['price'] != last_price: last_side = 1 if row['price'] > last_price else -1
        last_price, size = row['price'], row['size']
        side = last_side
        if 'side' in row: side = {'A': -1, 'N': 0, 'B': 1}.get(row['side'], row['side'])
        bid, ask = (size if side == -1 else 0), (size if side == 1 else 0)
        if 'BidVolume' in row: bid, ask = row['BidVolume'], row['AskVolume']
        out.append((row['ts'], round(row['price'] * 4), bid, ask, size - bid - ask, date, segment))
    return out


def plain_flow(trades, period, segment):
    "Delta by bar and volumes by bar and tick, in dictionaries."
    bars, cells = defaultdict(lambda: [0, 0, 0]), defaultdict(lambda: [0, 0, 0])
    for moment, tick, bid, ask, unknown, date, part in plain_sides(trades):
        if segment not in ('all', part): continue
        seconds = int(moment.timestamp())
        opens = seconds - seconds % PERIODS[period]
        for table, key in ((bars, (date, opens)), (cells, (date, opens, tick))):
            for i, volume in enumerate((bid, ask, unknown)): table[key][i] += volume
    return bars, {key: v for key, v in cells.items() if sum(v)}


def agree(trades, period, segment):
    "Compare delta and footprint with plain Python; return how many sessions were compared."
    bars, cells = plain_flow(trades, period, segment)
    table, flow = trade_delta(trades, period, segment=segment), footprint(trades, period, segment=segment)
    cumulative, want = defaultdict(int), {}
    for (date, opens), (bid, ask, unknown) in sorted(bars.items()):
        cumulative[date] += ask - bid
        want[date, opens] = [bid + ask + unknown, bid, ask, unknown, ask - bid, cumulative[date]]
    keys = zip(table.date.dt.date, table.index.as_unit('s').asi8.tolist())
    columns = ['volume', 'bid_volume', 'ask_volume', 'unknown_volume', 'delta', 'cumulative_delta']
    assert dict(zip(keys, table[columns].to_numpy().tolist())) == want
    assert table.index.is_monotonic_increasing
    keys = zip(flow.date.dt.date, pd.DatetimeIndex(flow.ts).as_unit('s').asi8.tolist(), (flow.price * 4).astype(int))
    assert dict(zip(keys, flow[['bid', 'ask', 'unknown']].to_numpy().tolist())) == cells
    assert (flow.delta == flow.ask - flow.bid).all()
    return len(cumulative)


@pytest.mark.parametrize('sides', ['none', 'letters', 'numbers', 'volumes'])
def test_delta_and_footprint_of_500_random_sessions(sides):
    compared = 0
    for seed in range(5):
        trades = random_trades(seed, sides=sides)
        for period, segment in (('1min', 'RTH'), ('5min', 'ETH'), ('30min', 'all'), ('1h', 'all'), ('1h', 'RTH')):
            compared += agree(trades, period, segment)
        said = 'tick rule' if sides == 'none' else 'file'
        assert set(trade_delta(trades).side_from) == {said}
    assert compared >= 500


@pytest.mark.parametrize('seed', range(20))
def test_footprint_sums_to_the_profile(seed):
    trades = random_trades(seed)
    for segment in ('RTH', 'ETH', 'all'):
        flow, profiles = footprint(trades, '30min', segment=segment), profile_from_trades(trades, segment=segment)
        volume = flow.bid + flow.ask + flow.unknown
        for date in profiles.dates:
            truth = profiles[date]
            assert volume[flow.date == date].groupby(flow.price).sum().to_dict() == truth[truth > 0].to_dict()


@pytest.mark.parametrize('seed', range(20))
def test_a_later_trade_changes_no_earlier_bar(seed):
    trades, rng = random_trades(seed), np.random.default_rng(seed)
    whole, cells = trade_delta(trades, segment='all'), footprint(trades, segment='all')
    for cut in rng.integers(2, len(trades), 5):
        done = pd.Timestamp(trades.ts[cut]).tz_convert('America/New_York').floor('1min')
        part = trade_delta(trades[:cut], segment='all')
        pd.testing.assert_frame_equal(part[part.index < done], whole[whole.index < done])
        part = footprint(trades[:cut], segment='all')
        pd.testing.assert_frame_equal(part[part.ts < done], cells[cells.ts < done])


def test_files_of_any_cut_give_the_same_figures(tmp_path):
    trades = random_trades(3, sides='letters')
    for i, rows in enumerate(np.array_split(np.arange(len(trades)), 9)):
        trades.iloc[rows].to_parquet(tmp_path/f'{i}.parquet')
    for segment in ('RTH', 'ETH', 'all'):
        pd.testing.assert_frame_equal(trade_delta(tmp_path, segment=segment), trade_delta(trades, segment=segment))
        pd.testing.assert_frame_equal(footprint(str(tmp_path), segment=segment), footprint(trades, segment=segment))
    pd.testing.assert_frame_equal(profile_error(tmp_path), profile_error(trades))
    trades.iloc[:5].to_parquet(tmp_path/'late.parquet')
    with pytest.raises(BadData, match='not in order of time'): trade_delta(tmp_path)


def plain_runs(flow, rules):
    "Runs of imbalances of one bar after the other, as a set of tuples."
    found = set()
    for opens, bar in flow.groupby('ts'):
        bid = {round(p * 4): v for p, v in zip(bar.price, bar.bid)}
        ask = {round(p * 4): v for p, v in zip(bar.price, bar.ask)}
        for side in (1, -1):
            mine, other = (ask, bid) if side > 0 else (bid, ask)
            hits = []
            for tick in sorted(mine):
                against = other.get(tick - side, 0)
                if against == 0 and not rules.zeros: continue
                if mine[tick] >= rules.minimum and mine[tick] >= rules.ratio * against: hits.append((tick, against))
            while hits:
                run = [hits.pop(0)]
                while hits and hits[0][0] == run[-1][0] + 1: run.append(hits.pop(0))
                total = sum(mine[t] for t, _ in run)
                found.add((opens, side, run[0][0] / 4, run[-1][0] / 4, len(run), total, sum(a for _, a in run),
                           len(run) >= rules.stack))
    return found


@pytest.mark.parametrize('seed', range(10))
def test_imbalances_of_random_sessions(seed):
    flow = footprint(random_trades(seed, per_session=300), '1h', segment='all')
    for rules in (ImbalanceRules(), ImbalanceRules(1.5, 1, 2), ImbalanceRules(2., 5, 1, zeros=True)):
        found = imbalances(flow, rules)
        columns = ['ts', 'side', 'low', 'high', 'prices', 'volume', 'against', 'stacked']
        assert set(found[columns].itertuples(index=False, name=None)) == plain_runs(flow, rules)
        assert len(found) == len(plain_runs(flow, rules)) > 0


@pytest.mark.skipif(not shared.exists(), reason='needs the real trades')
def test_real_trades():
    trades = pd.read_parquet(shared)
    for period, segment in (('1min', 'RTH'), ('5min', 'all')): agree(trades, period, segment)
    flow = footprint(trades, segment='RTH')
    found = imbalances(flow)
    columns = ['ts', 'side', 'low', 'high', 'prices', 'volume', 'against', 'stacked']
    assert set(found[columns].itertuples(index=False, name=None)) == plain_runs(flow, ImbalanceRules())
    pd.testing.assert_frame_equal(trade_delta(shared), trade_delta(trades))
    assert trade_delta(trades, segment='all').volume.sum() == trades['size'].sum()
    errors = profile_error(trades).query("date == '2013-09-03' and period == '1min' and spread == 'uniform'")
    assert (errors.error.abs() <= 1).all()


def plain_levels(profile):
    "VPOC, VAL and VAH of {tick: volume}, ticks without a gap."
    ticks, total, top = sorted(profile), sum(profile.values()), max(profile.values())
    middle = (ticks[0] + ticks[-1]) / 2
    poc = min((t for t in ticks if profile[t] >= top - 1e-3), key=lambda t: (abs(t - middle), t))
    low = high = poc
    inside = profile[poc]
    while inside < .7 * total - 1e-3:
        up, down = profile.get(high + 1, -1), profile.get(low - 1, -1)
        if up >= down - 1e-3: high, inside = high + 1, inside + up
        else: low, inside = low - 1, inside + down
    return poc, low, high


def plain_profile(bars):
    "{tick: volume} of bars (low, high, close in ticks, volume) spread uniformly."
    profile = dict.fromkeys(range(min(b[0] for b in bars), max(b[1] for b in bars) + 1), 0.)
    for low, high, volume in bars:
        for tick in range(low, high + 1): profile[tick] += volume / (high - low + 1)
    return profile


@pytest.mark.parametrize('seed', range(12))
def test_profile_error_of_random_sessions(seed):
    trades = random_trades(seed, per_session=400).assign(size=lambda t: t['size'] + 1)
    trades = trades[~trades.ts.between('2019-11-03 05:00+00:00', '2019-11-03 07:00+00:00')]  # this hour is there twice
    errors = profile_error(trades, spreads=('uniform', 'close'))
    found = errors.set_index(['date', 'period', 'spread', 'level']).error.to_dict()
    rows, want = defaultdict(list), {}
    for moment, tick, *volumes, date, part in plain_sides(trades):
        if part == 'RTH': rows[date].append((int(moment.timestamp()), tick, sum(volumes)))
    for date, some in rows.items():
        truth = plain_levels(plain_profile([(t, t, v) for _, t, v in some]))
        for period in ('1min', '5min', '30min'):
            grouped = defaultdict(list)
            for second, tick, volume in some: grouped[second // PERIODS[period]].append((tick, volume))
            spans = [(min(t for t, _ in g), max(t for t, _ in g), sum(v for _, v in g)) for g in grouped.values()]
            ends = [(g[-1][0], g[-1][0], sum(v for _, v in g)) for g in grouped.values()]
            closes = plain_profile([*ends, *((low, high, 0) for low, high, _ in spans)])
            for spread, profile in (('uniform', plain_profile(spans)), ('close', closes)):
                for level, made, true in zip(('vpoc', 'val', 'vah'), plain_levels(profile), truth):
                    want[pd.Timestamp(date), period, spread, level] = made - true
    assert found == want


def walk_of_trades(sessions, seed, per_session=3000):
    "Trades of regular hours at the bid or ask of a walk; volume in bursts."
    rng, parts = np.random.default_rng(seed), []
    for day in pd.bdate_range('2015-02-02', periods=sessions):
        seconds = np.sort(rng.integers(0, 23_400, per_session))
        middle = 8000 + np.cumsum(rng.choice([-1, 0, 1], per_session, p=[.08, .84, .08]))
        burst = np.exp(np.repeat(rng.standard_normal(-(-per_session // 50)), 50)[:per_session])
        ts = (day + pd.Timedelta('9h30min')).tz_localize('America/New_York') + pd.to_timedelta(seconds, 's')
        price = (middle + rng.integers(0, 2, per_session)) / 4
        parts.append(pd.DataFrame({'ts': ts, 'price': price, 'size': 1 + rng.poisson(5 * burst)}))
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize('period', ['1min', '5min', '30min'])
def test_the_stated_90th_percentile_holds(period):
    trades = walk_of_trades(120, seed=5)
    stated = expected_level_error(bars_from_trades(trades, period))
    errors = profile_error(trades, periods=(period,), spreads=('uniform',))
    for level in ('vpoc', 'val', 'vah'):
        half, most = getattr(stated, level)
        true = errors.error[errors.level == level].abs()
        assert .82 <= (true <= most).mean(), f'{level}: {most} stated'
        assert most <= 2.5 * max(true.quantile(.95), 1)  # cautious, not useless
        assert abs(half - true.median()) <= max(1, .5 * true.median())


def test_expected_error_where_nothing_is_lost():
    bars, _ = sample_market(5)
    flat = bars.assign(high=bars.close, low=bars.close, open=bars.close)
    stated = expected_level_error(flat)
    assert stated == LevelError('1-minute bars', 5, 100, (0, 0), (0, 0), (0, 0))
    assert str(stated) == stated.sentence and stated.sentence.startswith('Levels made from 1-minute bars: VPOC off by 0')


def test_expected_error_is_the_same_again_and_takes_the_settings_of_levels():
    bars, _ = sample_market(40)
    assert expected_level_error(bars) == expected_level_error(bars)
    assert expected_level_error(bars, seed=1).sessions == 40
    other = expected_level_error(bars, LevelConfig(spread='close', poc='cluster', area='pairs', pct=.8, smooth=3))
    assert isinstance(other, LevelError) and other != expected_level_error(bars)
    assert expected_level_error(sample_market(300)[0]).sessions == 250
    night = bars[(bars.index.hour < 9)] if (bars.index.hour < 9).any() else bars.assign(segment='ETH', date=add_sessions(bars).date)
    with pytest.raises(BadData, match='no session has RTH volume'): expected_level_error(night)


def test_other_contracts_and_hours():
    dax = ContractSpec('FDAX', .5, 25., rth_open='09:00', rth_close='17:30', tz='Europe/Berlin')
    trades = random_trades(1).assign(price=lambda t: t.price * 2)
    table = trade_delta(trades, contract=dax)
    assert set(table.index.tz_convert('Europe/Berlin').hour) <= set(range(9, 18))
    flow = footprint(trades, contract=dax)
    assert (flow.price % .5 == 0).all()
    assert flow.bid.sum() == table.bid_volume.sum()


def test_pictures_refuse_what_is_empty():
    trades = random_trades(2)
    flow = footprint(trades, '30min')
    with pytest.raises(BadData, match='no bar of the footprint'): plot_footprint(flow, '2030-01-01')
    night = trades[[day_and_segment(t.to_pydatetime())[1] == 'ETH' for t in trades.ts]]
    with pytest.raises(BadData, match='no RTH trade'): plot_delta(night)
    assert len(trade_delta(night)) == 0 and len(footprint(night)) == 0 and len(imbalances(footprint(night))) == 0
