"""The market profile against a slow twin in plain Python: every figure, on random sessions with all that can go wrong and on all real ones."""
import math
from datetime import date as Day
from datetime import datetime, time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest

from vpoc_backtest.causality import check_causality
from vpoc_backtest.data import ES, ContractSpec, add_sessions, random_walk
from vpoc_backtest.market_profile import (
    STRUCTURE,
    StructureRules,
    _describe_session,
    balance_areas,
    open_references,
    session_structure,
)
from vpoc_backtest.profiles import volume_profiles
from vpoc_backtest.readers import read_bars
from vpoc_backtest.rolls import front_month
from vpoc_backtest.tpo import tpo_profiles
from vpoc_backtest.vpoc import session_levels

shared = Path(__file__).parents[2]/'shared/data'
ZONE = ZoneInfo('America/New_York')
SPY = ContractSpec('SPY', .005, 1)
RULES = [StructureRules(), StructureRules(value='tpo', area='pairs', confirmed_excess=True, period='15min', ib_minutes=30, open_minutes=15, pct=.6,
                                          ib_coverage=.8, min_coverage=.5, narrow_sessions=4, narrow=.8, normal_ib=.6, trend_extension=1.)]


def walk_with_faults(sessions=500, seed=0, rolls=.02):
    "Random sessions with nights, missing bars, half days, holes between bars, bars without volume, days of few bars, and rolls."
    rng = np.random.default_rng(seed)
    rth = random_walk(sessions, seed=seed)
    days = [day for _, day in rth.groupby(rth.index.date)]
    made, price, offset, name = [], None, 0., 0
    for number, day in enumerate(days):
        asof = pd.NaT
        if number and rng.random() < rolls:
            step = float(rng.integers(-40, 40)) * .25
            name, offset = name + 1, offset + step
            known = day.index[0] - timedelta(minutes=int(rng.integers(1, 900)))
            asof = known if rng.random() < .7 else day.index[0]  # measured before the open, or too late
        kept = np.ones(len(day), bool)
        fault = rng.random()
        if fault < .1: kept[210:] = False
        elif fault < .25: kept[rng.integers(0, 390, rng.integers(1, 60))] = False
        elif fault < .3: kept[:rng.integers(1, 40)] = False
        elif fault < .33: kept[rng.integers(1, 8):] = False
        elif fault < .35: kept[:rng.integers(330, 389)] = False
        day = day[kept].copy()
        prices = ['open', 'high', 'low', 'close']
        if rng.random() < .4: day[prices] = day[prices].add(rng.choice([0, 0, 0, 0, 0, 0, 0, 2, -3, 8], len(day)).cumsum() * .25, axis=0)
        if rng.random() < .3: day.loc[rng.random(len(day)) < .1, 'volume'] = 0
        if rng.random() < .01: day['volume'] = 0
        parts = [night(day, price, rng), day] if rng.random() < .8 else [day]
        if rng.random() < .3: parts.append(evening(day, rng))
        price = day.close.iloc[-1]
        for part in parts: made.append(part.assign(contract=f'C{name:03}', shift=offset, offset_asof=asof))
    bars = pd.concat(made).astype({'volume': np.int64})
    bars['offset'], bars['offset_asof'] = bars['shift'], pd.DatetimeIndex(pd.to_datetime(bars.offset_asof, utc=True)).tz_convert(ZONE.key)
    prices = ['open', 'high', 'low', 'close']
    bars[prices] = bars[prices].add(bars['shift'], axis=0)
    bars = add_sessions(bars.drop(columns='shift'))
    return bars.assign(offset_asof=bars.groupby('contract').offset_asof.transform('first'))


def night(day, price, rng):
    opened = day.index[0].normalize()
    times = pd.date_range(opened - timedelta(hours=6), opened + timedelta(hours=9, minutes=29), freq=f'{rng.integers(3, 31)}min')
    middle = day.open.iloc[0] + rng.integers(-20, 20, len(times)).cumsum() * .25 if price is None else np.linspace(price, day.open.iloc[0], len(times))
    middle = np.round(np.asarray(middle) * 4) / 4
    return pd.DataFrame({'open': middle, 'high': middle + rng.integers(0, 6, len(times)) * .25, 'low': middle - rng.integers(0, 6, len(times)) * .25,
                         'close': middle, 'volume': rng.integers(0, 50, len(times))}, times)


def evening(day, rng):
    times = pd.date_range(day.index[0].normalize() + timedelta(hours=16), periods=10, freq='5min')
    last = day.close.iloc[-1]
    return pd.DataFrame({'open': last, 'high': last + 1, 'low': last - 1, 'close': last, 'volume': rng.integers(0, 50, len(times))}, times)


# --- the twin: one bar after the other, nothing from the package

class Bar:
    def __init__(self, ts, row, tick):
        self.ts, wall = ts, ts.astimezone(ZONE)
        self.minutes = (wall.hour * 60 + wall.minute + wall.second / 60)
        self.date = wall.date() + timedelta(days=1) if wall.hour >= 18 else wall.date()
        self.rth = 570 <= self.minutes < 960
        self.open, self.high, self.low, self.close = (round(row[c] / tick) for c in ('open', 'high', 'low', 'close'))
        self.volume = int(row['volume'])


def plain_bars(bars, tick):
    rows = bars[['open', 'high', 'low', 'close', 'volume']].to_dict('records')
    return [Bar(ts.to_pydatetime(), row, tick) for ts, row in zip(bars.index, rows)]


def by_date(plain):
    days = {}
    for b in plain: days.setdefault(b.date, []).append(b)
    return days


def letters_of(rth, minutes):
    "For every tick the set of periods that traded there."
    found = {}
    for b in rth:
        if b.volume == 0: continue
        for tick in range(b.low, b.high + 1): found.setdefault(tick, set()).add(int((b.minutes - 570) // minutes))
    return found


def value_area(counts, pct, rows, tie=0):
    "POC and value area of counts by tick (all ticks from the lowest on): nearest the middle, then the lower; then the larger side, equal ones up."
    ticks = list(range(min(counts), max(counts) + 1))
    count = [counts.get(t, 0) for t in ticks]
    middle, top = (len(ticks) - 1) / 2, max(count)
    poc = min((i for i in range(len(ticks)) if count[i] >= top - tie), key=lambda i: (abs(i - middle), i))
    low = high = poc
    while sum(count[low:high + 1]) + tie < pct * sum(count):
        up, down = count[high + 1:high + 1 + rows], count[max(low - rows, 0):low]
        up_sum, down_sum = sum(up) if up else -math.inf, sum(down) if down else -math.inf
        if up_sum + tie >= down_sum: high += len(up)
        else: low -= len(down)
    return ticks[poc], ticks[low], ticks[high]


def runs_of_one(letters):
    "Runs of ticks with one letter, from the lowest."
    runs, before = [], None
    for tick in sorted(letters):
        if len(letters[tick]) == 1:
            if before is not None and before == tick - 1 and runs and runs[-1][1] == tick - 1: runs[-1][1] = tick
            else: runs.append([tick, tick])
        before = tick
    return runs


def shortest_step(bars):
    return min((b.ts - a.ts for a, b in zip(bars, bars[1:])), default=timedelta(days=999))


def share_on_file(bars, first, minutes, earlier):
    "Share of some minutes from the opening on that these bars cover."
    if not bars: return 0.
    until = timedelta(minutes=570 + minutes - bars[-1].minutes)
    return len(bars) * min(shortest_step(first), shortest_step(earlier), until) / timedelta(minutes=minutes)


def opening_type(bars, rules):
    traded = [b for b in bars if b.volume]
    o, c, high, low = traded[0].open, traded[-1].close, max(b.high for b in traded), min(b.low for b in traded)
    size, net = high - low, c - o
    if net == 0: return 'open auction'
    when_high, when_low = ([getattr(b, k) for b in traded].index(x) for k, x in (('high', high), ('low', low)))
    back, first = (o - low, when_low < when_high) if net > 0 else (high - o, when_high < when_low)
    if abs(net) >= rules.drive_close * size:
        if back <= rules.drive_back * size: return 'open drive'
        if first and back <= rules.test_back * size: return 'open test drive'
    return 'open rejection reverse' if first and abs(net) >= rules.reject_close * size else 'open auction'


def relation(val, vah, below, above):
    if val > above: return 'higher'
    if vah < below: return 'lower'
    if below <= val and vah <= above: return 'inside'
    if val <= below and above <= vah: return 'outside'
    return 'overlapping higher' if val > below else 'overlapping lower'


def shift_between(levels, i):
    "Ticks to add to prices of the session before, None where not comparable."
    if i == 0: return None
    now, then = levels.iloc[i], levels.iloc[i - 1]
    if now.contract == then.contract: return 0.
    if 'offset' not in levels or pd.isna(now.offset_asof) or not now.offset_asof < now.first_ts: return None
    return now.offset - then.offset


def twin_structure(bars, levels, rules, contract):
    "Every row of `session_structure`, as a dict."
    days, tick, rows, before, ranges, earlier = by_date(plain_bars(bars, contract.tick_size)), contract.tick_size, {}, None, [], []
    minutes = pd.Timedelta(rules.period).total_seconds() / 60
    width = 2 if rules.area == 'pairs' else 1
    with_rth = [d for d in days if any(b.rth for b in days[d])]
    for i, d in enumerate(with_rth):
        rth, overnight = [b for b in days[d] if b.rth], [b for b in days[d] if not b.rth and not 570 <= b.minutes < 1080 and b.volume]
        level, shift = levels.iloc[i], shift_between(levels, i)
        shift = None if shift is None else round(shift / tick)
        traded, first_hour, start = [b for b in rth if b.volume], [b for b in rth if b.minutes < 570 + rules.ib_minutes], [b for b in rth if b.minutes < 570 + rules.open_minutes]
        row = dict.fromkeys(STRUCTURE.column)
        earlier_start = [b for b in earlier if b.minutes < 570 + rules.open_minutes]
        row['coverage'] = share_on_file(rth, first_hour, 390, earlier)
        prior = before if shift is not None and before and before['high'] is not None else None
        if overnight:
            row['overnight_high'], row['overnight_low'] = max(b.high for b in overnight) * tick, min(b.low for b in overnight) * tick
            row['overnight_close'] = overnight[-1].close * tick
            if prior:
                close, above = prior['close'] + shift, 0.
                for b in overnight: above += b.volume * sum(t > close for t in range(b.low, b.high + 1)) / (b.high - b.low + 1)
                row['overnight_inventory'] = above / sum(b.volume for b in overnight)
        letters = letters_of(rth, minutes)
        row.update(single_prints=0, single_print_zones=(), poor_high=False, poor_low=False, excess_high=0, excess_low=0)
        now = {'high': None}
        if traded:
            now = {'high': max(letters), 'low': min(letters), 'close': traded[-1].close, 'open': traded[0].open}
            fill_letters(row, letters, rules, tick)
            ends = min(b.low for b in rth), max(b.high for b in rth)  # levels that only bars without volume reach are levels, as for volume
            poc, val, vah = value_area({t: len(letters.get(t, ())) for t in (*ends, *letters)}, rules.pct, width)
            row['tpo_poc'], row['tpo_val'], row['tpo_vah'] = poc * tick, val * tick, vah * tick
            weight = [(t, b.volume / (b.high - b.low + 1)) for b in traded for t in range(b.low, b.high + 1)]
            total = sum(v for _, v in weight)
            mean = sum(t * v for t, v in weight) / total
            row['vwap'], row['vwap_sd'] = mean * tick, math.sqrt(max(sum(v * (t - mean)**2 for t, v in weight) / total, 0)) * tick
            now['area'] = (val, vah) if rules.value == 'tpo' else (round(level.val / tick), round(level.vah / tick))
            if prior:
                row['gap'] = (now['open'] - prior['close'] - shift) * tick
                row['range_gap'] = (max(now['open'] - prior['high'] - shift, 0) + min(now['open'] - prior['low'] - shift, 0)) * tick
                row['value_relation'] = relation(*now['area'], *(edge + shift for edge in prior['area']))
            fill_types(row, now, letters, poc, (first_hour, earlier), ranges, rules, tick)
            if any(b.volume for b in start) and share_on_file(start, start, rules.open_minutes, earlier_start) >= rules.ib_coverage:
                row['open_type'] = opening_type(start, rules)
        ranges.append(None if now['high'] is None else now['high'] - now['low'])
        rows[d], before, earlier = row, now, first_hour
    return rows


def fill_letters(row, letters, rules, tick):
    bottom, top = min(letters), max(letters)
    inner = [r for r in runs_of_one(letters) if r[0] > bottom and r[1] < top]
    row['single_prints'] = sum(b - a + 1 for a, b in inner)
    row['single_print_zones'] = tuple((a * tick, b * tick) for a, b in inner)
    row['poor_high'], row['poor_low'] = len(letters[top]) > 1, len(letters[bottom]) > 1
    last = max(max(x) for x in letters.values())
    good = lambda t: t in letters and len(letters[t]) == 1 and not (rules.confirmed_excess and letters[t] == {last})
    while good(top - row['excess_high']): row['excess_high'] += 1
    while good(bottom + row['excess_low']): row['excess_low'] += 1


def fill_types(row, now, letters, poc, hours, ranges, rules, tick):
    first_hour, earlier = hours
    size = now['high'] - now['low']
    if row['coverage'] >= rules.min_coverage:
        counts = {t: len(x) for t, x in letters.items()}
        def parts(a, b):
            below, above = sum(n for t, n in counts.items() if t < a), sum(n for t, n in counts.items() if t > b)
            return b - a + 1 >= rules.double_width * (size + 1) and min(below, above) >= rules.double_share * sum(counts.values())
        up, down = poc - now['low'] >= (1 - rules.poc_share) * size, poc - now['low'] <= rules.poc_share * size
        row['shape'] = 'B' if any(parts(round(a / tick), round(b / tick)) for a, b in row['single_print_zones']) else 'D' if up == down else 'P' if up else 'b'
    traded = [b for b in first_hour if b.volume]
    if not traded or share_on_file(first_hour, first_hour, rules.ib_minutes, earlier) < rules.ib_coverage: return
    high, low = max(b.high for b in traded), min(b.low for b in traded)
    row['ib_high'], row['ib_low'] = high * tick, low * tick
    if high == low: return
    up, down = (now['high'] - high) / (high - low), (low - now['low']) / (high - low)
    row['extension_up'], row['extension_down'] = up, down
    if row['coverage'] < rules.min_coverage: return
    usual = ranges[-rules.narrow_sessions:]
    known = len(usual) == rules.narrow_sessions and None not in usual
    place = (now['close'] - now['low']) / size
    if up > 0 and down > 0: row['day_type'] = 'neutral'
    elif row['shape'] == 'B': row['day_type'] = 'double distribution'
    elif up >= rules.trend_extension and place >= 1 - rules.trend_close: row['day_type'] = 'trend'
    elif down >= rules.trend_extension and place <= rules.trend_close: row['day_type'] = 'trend'
    elif known and rules.narrow_sessions * size <= rules.narrow * sum(usual) and up + down < 1: row['day_type'] = 'non-trend'
    elif high - low >= rules.normal_ib * size: row['day_type'] = 'normal'
    else: row['day_type'] = 'normal variation'


def compare_structure(bars, rules, contract=ES):
    levels = session_levels(bars, contract=contract)
    got, want = session_structure(bars, levels, rules, contract=contract), twin_structure(bars, levels, rules, contract)
    assert [d.date() for d in got.index] == list(want)
    for column in STRUCTURE.column:
        for d, g in got[column].items():
            w = want[d.date()][column]
            same = len(g) == len(w) and np.allclose(g, w) if column == 'single_print_zones' else pd.isna(g) if w is None else \
                g == w if isinstance(w, (str, bool, int)) else abs(g - w) < 1e-6
            assert same, f'{column} on {d.date()}: {g} here, {w} by the twin'
    return got


@pytest.fixture(scope='module')
def faulty(): return walk_with_faults()


@pytest.mark.parametrize('rules', RULES, ids=('usual', 'other'))
def test_structure_of_random_sessions(faulty, rules):
    got = compare_structure(faulty, rules)
    for column in ('shape', 'day_type', 'open_type', 'value_relation'):  # every word occurs (days as wide as their first hour are rare), and so does not knowing
        assert set(got[column].cat.categories) - set(got[column]) <= {'normal'} and got[column].isna().any(), column
    for column in ('ib_high', 'overnight_high', 'overnight_inventory', 'gap', 'vwap'): assert got[column].isna().any() and got[column].notna().any()
    assert got.apply(_describe_session, axis=1).str.fullmatch(r'\S.*\.').all()


def letters_agree(bars, contract=ES, period='30min'):
    "Letters where there is volume and nowhere else; the twin's letters and levels."
    tpos, volume = tpo_profiles(bars, period, contract=contract), volume_profiles(bars, contract=contract)
    assert tpos.dates.equals(volume.dates) and (tpos.low == volume.low).all() and (tpos.offsets == volume.offsets).all()
    assert ((tpos.counts > 0) == (volume.units > 0)).all()
    days, levels = by_date(plain_bars(bars, contract.tick_size)), {area: tpos.levels(area=area) for area in ('single', 'pairs')}
    minutes = pd.Timedelta(period).total_seconds() / 60
    for i, d in enumerate(tpos.dates):
        own = tpos.periods[tpos.offsets[i]:tpos.offsets[i + 1]]
        got = {tpos.low[i] + k: {p for p in range(64) if int(bits) >> p & 1} for k, bits in enumerate(own) if bits}
        want = letters_of([b for b in days[d.date()] if b.rth], minutes)
        assert got == want, d
        if not want: continue
        counts = {t: len(x) for t, x in want.items()}
        counts = {t: counts.get(t, 0) for t in (tpos.low[i], tpos.low[i] + len(own) - 1, *counts)}
        for width, area in ((1, 'single'), (2, 'pairs')):
            found = value_area(counts, .7, width)
            assert np.allclose(levels[area].loc[d, ['poc', 'val', 'vah']].to_numpy(float), np.array(found) * contract.tick_size), d
            assert levels[area].loc[d, 'va_tpos'] == sum(n for t, n in counts.items() if found[1] <= t <= found[2])
            assert levels[area].loc[d, 'tpos'] == sum(counts.values())


@pytest.mark.parametrize('period', ('30min', '15min', '1h'))
def test_letters_of_random_sessions(faulty, period): letters_agree(faulty, period=period)


def real_bars():
    if not shared.exists(): pytest.skip('the real data is not here')
    return front_month(read_bars(shared/'es_1min_2013_2020.parquet')[0])


def real_spy():
    if not shared.exists(): pytest.skip('the real data is not here')
    bars = pd.read_parquet(shared/'spy_1min_2014_2015.parquet').set_index('ts')
    bars.index = bars.index.tz_convert('America/New_York')
    return add_sessions(bars.assign(**{c: SPY.to_prices(SPY.to_ticks(bars[c])) for c in ('open', 'high', 'low', 'close')}), SPY)


@pytest.mark.parametrize('rules', RULES, ids=('usual', 'other'))
@pytest.mark.real_data
def test_structure_of_real_sessions(rules):
    assert len(compare_structure(real_bars(), rules)) == 14
    assert len(compare_structure(real_spy(), rules, SPY)) == 153


@pytest.mark.real_data
def test_letters_of_real_sessions():
    letters_agree(real_bars())
    letters_agree(real_spy(), SPY)


# --- nothing is known too early

def scrambled(bars, since, rng):
    "The bars with other prices and volumes from a time on."
    later = np.asarray(bars.index >= since)
    move = later * rng.integers(-60, 60, len(bars)) * .25
    volume = np.where(later, rng.integers(0, 500, len(bars)), bars.volume)
    return bars.assign(volume=volume, **{c: bars[c] + move for c in ('open', 'high', 'low', 'close')})


def same_rows(a, b, columns):
    for c in columns: assert str(a[c]) == str(b[c]), (c, a[c], b[c])


KNOWN = ('overnight', 'open', 'ib', 'close')


@pytest.mark.parametrize('known', KNOWN)
def test_columns_are_known_when_they_say(faulty, known):
    bars = faulty[faulty.date < faulty.date.unique()[60]]
    whole, rng = session_structure(bars), np.random.default_rng(5)
    columns = STRUCTURE.column[STRUCTURE.known.isin(KNOWN[:KNOWN.index(known) + 1])]
    full = bars[bars.segment == 'RTH'].groupby('date').agg(first=('open', lambda s: s.index[0]), volume=('volume', 'first'))
    for d in full.index:
        if full.volume[d] == 0 and known == 'open': continue  # nothing traded at the open
        opened = pd.Timestamp(f'{d:%Y-%m-%d} 09:30', tz=ZONE.key)
        since = {'overnight': opened, 'open': full['first'][d] + timedelta(minutes=1), 'ib': opened + timedelta(hours=1), 'close': opened + timedelta(hours=6.5)}[known]
        same_rows(session_structure(scrambled(bars, since, rng)).loc[d], whole.loc[d], columns)
        cut = session_structure(bars[bars.index < since]) if known != 'overnight' else None  # before the open the session has no row yet
        if cut is not None and d in cut.index: same_rows(cut.loc[d], whole.loc[d], columns)


@pytest.mark.parametrize('known', KNOWN)
def test_check_causality_finds_nothing(known):
    """Bars are cut and exchanged at any minute; a column counts as made when `STRUCTURE` says that it is known."""
    whole = random_walk(40, seed=2)
    rng = np.random.default_rng(2)
    days = [day for _, day in whole.groupby(whole.index.date)]
    nights = [night(day, None, rng) for day in days]
    bars = add_sessions(pd.concat([part for pair in zip(nights, days) for part in pair]))
    columns = STRUCTURE.column[STRUCTURE.known == known]
    after = {'overnight': '0min', 'open': '1min', 'ib': '60min', 'close': '390min'}[known]

    def dated(bars):
        return session_structure(bars)[columns].set_axis(session_levels(bars).first_ts + pd.Timedelta(after))

    assert dated(bars).notna().mean().min() > .5
    check_causality(dated, bars, dates=25, strict=True)
    if known == 'close': assert len(check_causality(lambda bars: dated(bars).set_axis(session_levels(bars).first_ts), bars, dates=25))


def test_sessions_do_not_change_when_others_follow(faulty):
    whole, levels = session_structure(faulty), session_levels(faulty)
    for d in levels.index[[0, 1, 7, 50, 200, 350]]:
        known = faulty[faulty.date <= d]
        pd.testing.assert_frame_equal(session_structure(known, levels), whole[:d])
        pd.testing.assert_frame_equal(tpo_profiles(known).levels(), tpo_profiles(faulty).levels()[:d])


# --- balance and what is open

def twin_balances(bars, levels, rules, contract):
    "Every row of `balance_areas`."
    tick, out, run, volumes = contract.tick_size, {}, [], volume_profiles(bars, contract=contract)
    for i, (d, row) in enumerate(levels.iterrows()):
        shift = shift_between(levels, i)
        if run and shift is not None:
            then = levels.iloc[i - 1]
            ticks = lambda x: round(x / tick)
            val, vah, below, above = ticks(row.val), ticks(row.vah), ticks(then.val + shift), ticks(then.vah + shift)
            shared = len(set(range(val, vah + 1)) & set(range(below, above + 1)))
            joins = shared >= max(1, rules.balance_overlap * min(vah - val + 1, above - below + 1) - 1e-9)
        else: joins = False
        run = [(k, s + shift) for k, s in run] + [(i, 0.)] if joins else [(i, 0.)]
        if len(run) < rules.balance_sessions: continue
        units = {}
        for k, s in run:
            own = volumes.units[volumes.offsets[k]:volumes.offsets[k + 1]]
            for j, u in enumerate(own): units[int(volumes.low[k] + j + round(s / tick))] = units.get(int(volumes.low[k] + j + round(s / tick)), 0) + int(u)
        poc, low, high = value_area(units, .7, 1, max((1 << 28) >> 12, sum(units.values()) >> 34))
        out[d] = {'start': levels.index[run[0][0]], 'sessions': len(run), 'high': max(levels.high.iloc[k] + s for k, s in run),
                  'low': min(levels.low.iloc[k] + s for k, s in run), 'vpoc': poc * tick, 'val': low * tick, 'vah': high * tick, 'known_at': row.last_ts}
    return pd.DataFrame.from_dict(out, orient='index')


@pytest.mark.parametrize('rules', (StructureRules(balance_overlap=.2), StructureRules(balance_overlap=0, balance_sessions=2)), ids=('some', 'any'))
def test_balances(faulty, rules):
    bars = faulty[faulty.groupby('date').volume.transform('sum') > 0]
    traded = bars[bars.segment == 'RTH'].groupby('date').volume.sum()
    bars = bars[bars.date.isin(traded.index[traded > 0])]
    cases = [(bars, ES)] + ([(real_bars(), ES), (real_spy(), SPY)] if shared.exists() else [])
    for some, contract in cases:
        levels = session_levels(some, contract=contract)
        got, want = balance_areas(levels, rules, some, contract=contract), twin_balances(some, levels, rules, contract)
        assert len(got) == len(want) and (len(got) or contract is ES)
        if len(got): pd.testing.assert_frame_equal(got, want, check_dtype=False, check_names=False, check_freq=False)
        for d in levels.index[[5, len(levels) // 2]]:
            pd.testing.assert_frame_equal(balance_areas(levels[:d], rules, some[some.date <= d], contract=contract), got[:d])


def twin_references(bars, levels, contract):
    "Every row of `open_references`."
    tick, plain, rows = contract.tick_size, plain_bars(bars, contract.tick_size), []
    days, stamps = by_date(plain), {d: i for i, d in enumerate(x.date() for x in levels.index)}
    order = list(stamps)
    breaks = [i for i in range(len(levels)) if shift_between(levels, i) is None]
    offset_of = lambda i: round(levels.offset.iloc[i] / tick) if 'offset' in levels else 0
    bar_offset = [round(x / tick) for x in bars.offset] if 'offset' in bars else [0] * len(plain)
    for first, end in zip(breaks, breaks[1:] + [len(levels)]):
        last_date = order[end - 1] if end < len(levels) else Day(9999, 1, 1)
        own = [(b, b.high - o, b.low - o) for b, o in zip(plain, bar_offset) if order[first] <= b.date <= last_date and b.volume]
        new, name = offset_of(end - 1), str(levels.contract.iloc[end - 1])
        for i in range(first, end):
            level, d = levels.iloc[i], order[i]
            closed = level.last_ts.to_pydatetime()
            def add(kind, low, high, when):
                passed = sum(order[k] < when.date for k in range(i, end)) if when else end - 1 - i
                rows.append((kind, (low + new) * tick, (high + new) * tick, levels.index[i], passed, when.ts if when else pd.NaT, name))
            if not math.isnan(level.vpoc):
                v = round(level.vpoc / tick) - offset_of(i)
                add('naked VPOC', v, v, next((b for b, h, l in own if b.ts > closed and l <= v <= h), None))
            if i > first:
                then, o = levels.iloc[i - 1], round(level.open / tick) - offset_of(i)
                high, low = round(then.high / tick) - offset_of(i - 1), round(then.low / tick) - offset_of(i - 1)
                opened = level.first_ts.to_pydatetime()
                if o > high: add('gap', high, o, next((b for b, h, l in own if b.ts >= opened and b.rth and l <= high), None))
                if o < low: add('gap', o, low, next((b for b, h, l in own if b.ts >= opened and b.rth and h >= low), None))
            letters = letters_of([b for b in days[d] if b.rth], 30)
            for a, z in [r for r in runs_of_one(letters) if r[0] > min(letters) and r[1] < max(letters)]:
                a, z, up, down, when = a - offset_of(i), z - offset_of(i), False, False, None
                for b, h, l in own:
                    if b.ts <= closed: continue
                    up, down = up or h >= z, down or l <= a
                    if up and down:
                        when = b
                        break
                add('single prints', a, z, when)
    out = pd.DataFrame(rows, columns=['kind', 'low', 'high', 'born', 'age', 'filled_at', 'contract'])
    return out.sort_values(['born', 'kind', 'low'], ignore_index=True)


def compare_references(bars, contract=ES):
    levels = session_levels(bars, contract=contract)
    got, want = open_references(bars, levels, contract=contract), twin_references(bars, levels, contract)
    want['filled_at'] = pd.DatetimeIndex(pd.to_datetime(want.filled_at, utc=True)).tz_convert(ZONE.key)
    pd.testing.assert_frame_equal(got, want, check_dtype=False, check_names=False)
    return got


def test_open_references():
    bars = walk_with_faults(120, seed=3, rolls=.08)
    bars = bars[bars.volume > 0]
    got = compare_references(bars)
    assert set(got.kind) == {'naked VPOC', 'gap', 'single prints'} and got.filled_at.isna().any() and got.filled_at.notna().any()
    assert got.contract.nunique() > 1, 'a roll that was not measured ends a stretch'
    d = got.born.iloc[len(got) // 2]
    known = bars[bars.date <= d]
    pd.testing.assert_frame_equal(open_references(bars, session_levels(bars), d), open_references(known, session_levels(known)))


@pytest.mark.real_data
def test_open_references_of_real_sessions():
    compare_references(real_bars())
    spy = real_spy()
    compare_references(spy[spy.date < spy.date.unique()[60]], SPY)


# --- the package MarketProfile from PyPI

def test_agrees_with_the_package_marketprofile():
    """Fed with our letters, one row a letter, it finds the same point of control and value area, but for three differences: of equal POCs it takes
    the one nearest to n/2 (here (n − 1)/2, then the lower), it goes on until the area holds more than the share (here at least), and its
    rows are traded prices only. Its initial balance counts the bar that opens when the hour ends."""
    package = pytest.importorskip('market_profile')
    bars = random_walk(60, seed=4)
    tpos, structure, compared = tpo_profiles(bars), session_structure(bars), 0
    levels = tpos.levels()
    for d in tpos.dates:
        letters = tpos[d]
        count = letters.str.len()
        rows = pd.DataFrame({'Close': np.repeat(letters.index, count), 'Volume': 1})
        rows.index = pd.date_range(d, periods=len(rows), freq='min')
        rows['High'] = rows['Low'] = rows.Close
        got = package.MarketProfile(rows, tick_size=.25, mode='tpo')[rows.index[0]:rows.index[-1]]
        at = levels.loc[d]
        assert count[got.poc_price] == count[at.poc] == count.max()
        if got.poc_price != at.poc: continue
        compared += 1
        if at.va_tpos > .7 * at.tpos: assert tuple(got.value_area) == (at.val, at.vah)
        else: assert got.value_area[0] <= at.val and got.value_area[1] >= at.vah
        day = bars[bars.index.date == d.date()].rename(columns=str.title)
        low, high = package.MarketProfile(day[day.index < day.index[0] + timedelta(hours=1)])[day.index[0]:day.index[-1]].initial_balance()
        assert (low, high) == (structure.ib_low[d], structure.ib_high[d])
    assert compared >= 40


def test_empty_and_small():
    bars = add_sessions(random_walk(3))
    assert len(session_structure(bars[:1])) == 1
    evenings = bars.set_axis(bars.index + timedelta(hours=7))
    assert session_structure(add_sessions(evenings[['open', 'high', 'low', 'close', 'volume']])).shape[1] == len(STRUCTURE)
    assert datetime.combine(Day(2015, 1, 2), time(9, 30)) == bars.index[0].to_pydatetime().replace(tzinfo=None)
