"""bars + rejects = rows read, for any rows, and no other error than BadData; every layout, packed or not; what is kept of a reading."""
import gzip
import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vpoc_backtest import data, readers, storage
from vpoc_backtest.cli import main
from vpoc_backtest.data import _PRICES, _ZONE, BadData, check_bars, random_walk
from vpoc_backtest.layouts import sniff_layout
from vpoc_backtest.parsing import bars_from_trades
from vpoc_backtest.readers import _bar_files, read_bars
from vpoc_backtest.run_config import load_market
from vpoc_backtest.storage import _UNFINISHED

shared = Path(__file__).parents[2]/'shared/data'


@pytest.fixture(autouse=True)
def no_cache(monkeypatch): monkeypatch.setenv('VPOC_CACHE', 'off')


PLATFORMS = ('ninjatrader', 'sierra', 'tradestation', 'kibot', 'backtestmarket', 'firstrate', 'tradingview', 'databento', 'lean', 'generic')


price = st.one_of(st.integers(15_990, 16_010).map(lambda t: f'{t / 4:.2f}'), st.sampled_from(['', 'x', '-1', '0', 'nan', '1e3', '4000.1']))
volume = st.one_of(st.integers(0, 50).map(str), st.sampled_from(['', '-3', '2.5', 'many']))
stamp = st.one_of(st.integers(0, 30).map(lambda m: f'2020-01-06 09:{m:02d}'), st.sampled_from(['', 'noon', '2020-01-06', '2020-02-30 09:30', '2020-03-08 02:30']))
row = st.tuples(stamp, price, price, price, price, volume).map(','.join)
line = st.one_of(row, row, row, row.map(lambda r: r + ',1'), st.just('2020-01-06 09:30,4000'))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(line, min_size=1, max_size=30), end=st.booleans())
def test_nothing_is_lost(tmp_path, lines, end):
    path = tmp_path/'bars.csv'
    path.write_text('timestamp,open,high,low,close,volume\n' + '\n\n'.join(lines) + '\n')
    try: bars, rejects = read_bars(path, stamp='end' if end else None)
    except BadData as e:
        assert 'bars.csv' in str(e)
        return
    assert len(bars) + len(rejects) == len(lines)
    assert (rejects.reason.str.len() > 0).all() and rejects.line.between(2, 2 * len(lines)).all()
    assert check_bars(bars).index.is_unique


def rows_in(content):
    "Lines with something in them, counted as people do: less a header line, if the first has words in it and no number."
    for alphabet, mark in (('utf-32', b'\xff\xfe\0\0'), ('utf-16', b'\xff\xfe'), ('utf-16', b'\xfe\xff')):
        if content.startswith(mark): content = content.decode(alphabet, errors='replace').encode()
    content = content.removeprefix(b'\xef\xbb\xbf')
    if re.search(rb'\r(?!\n)', content[:-1]): content = content.replace(b'\r\n', b'\n').replace(b'\r', b'\n')
    lines = [line for line in content.split(b'\n') if line.strip(b' \t\r"')]
    return len(lines), len(lines) - 1


anything = st.one_of(st.text('0123456789.,;:-/ \t"eEx\r\0é', max_size=60).map(str.encode), st.binary(max_size=40), st.sampled_from([b'', b'\n', b'\r\n', b'1', b'2013-10-07 09:30:00']))
edit = st.tuples(st.sampled_from(['replace', 'insert', 'delete', 'repeat', 'cut', 'splice']), st.integers(0, 40), st.integers(0, 60), anything)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layout=st.sampled_from(PLATFORMS), edits=st.lists(edit, max_size=12), end=st.sampled_from([b'\n', b'\r\n', b'']), parts=st.integers(1, 3))
def test_bars_and_rejects_are_the_rows_of_any_file(tmp_path, layout, edits, end, parts):
    "Any layout, edited in any way, alone, and as a folder of several files."
    name = NAMED.get(layout, 'bars.csv')
    lines = TEXTS[layout].split(b'\n')[:-1]
    for kind, at, column, text in edits:
        at %= len(lines)
        if kind == 'replace': lines[at] = text
        if kind == 'insert': lines.insert(at, text)
        if kind == 'delete' and len(lines) > 1: del lines[at]
        if kind == 'repeat': lines.insert(at, lines[at])
        if kind == 'cut': lines[at] = lines[at][:column]
        if kind == 'splice': lines[at] = lines[at][:column] + text + lines[at][column:]
    content = (end or b'\n').join(lines) + end
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    for k in range(parts): (folder/(f'{k} {name}' if k else name)).write_bytes(content)
    try: bars, rejects = read_bars(folder if parts > 1 else folder/name)
    except BadData as e:
        assert '\n' not in str(e)
        return
    check_bars(bars)
    assert len(bars) + len(rejects) in [parts * n for n in rows_in(content)]
    assert (rejects.reason.str.len() > 0).all() and not rejects.duplicated(['file', 'line']).any()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(st.one_of(st.none(), st.integers(0, 40)), *[st.one_of(st.none(), st.integers(15_990, 16_010).map(lambda t: t / 4), st.sampled_from([-1., 4000.1, np.inf]))] * 4,
                               st.one_of(st.none(), st.integers(-1, 9), st.just(2.5))), min_size=1, max_size=40))
def test_bars_and_rejects_are_the_rows_of_any_table(tmp_path, rows):
    table = pd.DataFrame([[pd.NaT if m is None else pd.Timestamp('2020-01-06 09:30', tz=_ZONE) + pd.Timedelta(m, 'min'), *values] for m, *values in rows], columns=['ts', *_PRICES, 'volume'])
    table.astype(dict.fromkeys([*_PRICES, 'volume'], float)).to_parquet(tmp_path/'bars.parquet')
    try: bars, rejects = read_bars(tmp_path/'bars.parquet')
    except BadData: return
    assert len(check_bars(bars)) + len(rejects) == len(rows)


def test_line_numbers_are_those_of_the_file(tmp_path):
    path = tmp_path/'bars.csv'
    path.write_text('timestamp,open,high,low,close,volume\n2020-01-06 09:30,1,1,1,1,1\n\ntorn\n2020-01-06 09:31,1,1,1,1,-1\n\n2020-01-06 09:32,1,1,1,1,1')
    bars, rejects = read_bars(path)
    assert len(bars) == 2 and dict(zip(rejects.line, rejects.reason)) == {4: '1 fields where 6 belong', 5: 'the volume is negative'}


def test_parquet_with_a_time_index_and_names_in_any_case(tmp_path):
    index = pd.date_range('2020-01-06 14:30', periods=5, freq='min', tz='UTC')
    frame = pd.DataFrame({c.upper(): 4000. for c in _PRICES}, index=index).assign(Volume=3)
    frame.to_parquet(tmp_path/'bars.parquet')
    bars, rejects = read_bars(tmp_path/'bars.parquet')
    assert len(bars) == 5 and not len(rejects) and str(bars.index.tz) == _ZONE and bars.index[0].hour == 9


def test_a_stray_quotation_mark_costs_its_own_row(tmp_path):
    rows = [f'2020-01-06 10:{m:02d},4000,4001,3999,4000,5' for m in range(60)]
    rows[20], rows[40] = rows[20].replace(',5', ',"5'), rows[40].replace('4000,4001', '"4000",4001')
    (tmp_path/'bars.csv').write_text('timestamp,open,high,low,close,volume\n' + '\n'.join(rows))
    bars, rejects = read_bars(tmp_path/'bars.csv')
    assert len(bars) + len(rejects) == 60 and len(rejects) <= 1


def test_times_without_colons(tmp_path):
    rows = [f'20131007,{h * 100 + m},4000,4001,3999,4000,5' for h in range(4) for m in range(60)]
    (tmp_path/'bars.csv').write_text('Date,Time,Open,High,Low,Close,Volume\n' + '\n'.join(rows))
    bars, rejects = read_bars(tmp_path/'bars.csv')
    assert not len(rejects) and (bars.index == pd.date_range('2013-10-07', periods=240, freq='min', tz=_ZONE)).all()


def test_contracts_named_by_letters_in_a_column(tmp_path):
    rows = [f'2013-10-07 10:{m:02d},4000,4001,3999,4000,5,{c}' for m in range(30) for c in ('ESZ3', 'ESH4')]
    (tmp_path/'bars.csv').write_text('timestamp,open,high,low,close,volume,symbol\n' + '\n'.join(rows))
    bars, rejects = read_bars(tmp_path/'bars.csv')
    assert not len(rejects) and sorted(bars.contract.unique()) == ['ES 03-14', 'ES 12-13']


def test_what_lies_in_a_folder(tmp_path):
    (tmp_path/'bars.csv').write_text('timestamp,open,high,low,close,volume\n2020-01-06 10:00,1,1,1,1,1')
    for name in ('VIX.csv', 'old.rar', 'README.md'): (tmp_path/name).touch()
    (tmp_path/'folder.csv').mkdir()
    (tmp_path/'folder.csv/more.csv').write_text('timestamp,open,high,low,close,volume\n2020-01-06 10:01,1,1,1,1,-1')
    files, others = _bar_files(tmp_path)
    assert [f.name for f in files] == ['bars.csv', 'more.csv'] and [f.name for f in others] == ['VIX.csv', 'old.rar']
    assert read_bars(tmp_path)[1].file.tolist() == ['folder.csv/more.csv']


WALK = random_walk(2)
WALK.index = WALK.index - pd.Timedelta('452D')  # 7 and 10 October 2013
NAMED = {'ninjatrader': 'ES 12-13.Last.txt', 'lean': '20131007_es_minute_trade_201312.csv'}


def written_as(layout, bars=WALK):
    "Bars as each platform writes them."
    def rows(form, zone, numbers='{o:.2f},{h:.2f},{l:.2f},{c:.2f},{v}', late=0, mark=','):
        stamps = bars.index.tz_convert(zone) + pd.Timedelta(late, 'min')
        return ''.join(mark.join([f'{t:{form}}', numbers.format(o=o, h=h, l=l, c=c, v=v).replace(',', mark)]) + '\n'
                       for t, o, h, l, c, v in zip(stamps, *(bars[c] for c in (*_PRICES, 'volume'))))
    unix = lambda unit: [int(t.timestamp()) * unit for t in bars.index]
    values = list(zip(*(bars[c] for c in (*_PRICES, 'volume'))))
    if layout == 'ninjatrader': return rows('%Y%m%d %H%M%S', 'UTC', late=1, mark=';')
    if layout == 'sierra': return 'Date, Time, Open, High, Low, Last, Volume, # of Trades, Bid Volume, Ask Volume\n' + rows('%Y/%m/%d, %H:%M:%S', 'America/Chicago').replace(',', ', ').replace(',  ', ', ').replace('\n', ', 7, 1, 2\n')
    if layout == 'tradestation':
        return '"Date","Time","Open","High","Low","Close","Up","Down"\n' + rows('%m/%d/%Y,%H:%M', 'America/Chicago', '{o},{h},{l},{c},{v},0', late=1)
    if layout == 'kibot': return rows('%m/%d/%Y,%H:%M', _ZONE)
    if layout == 'backtestmarket': return rows('%d/%m/%Y,%H:%M', 'America/Chicago').replace(',', ';')
    if layout == 'firstrate': return rows('%Y-%m-%d %H:%M:%S', _ZONE)
    if layout == 'tradingview': return 'time,open,high,low,close,Volume,Plot,Plot\n' + ''.join(f'{t},{o},{h},{l},{c},{v},1,\n' for t, (o, h, l, c, v) in zip(unix(1), values))
    if layout == 'databento':
        return 'ts_event,rtype,publisher_id,instrument_id,open,high,low,close,volume,symbol\n' + ''.join(
            f'{t},33,1,5002,{int(o * 1e9)},{int(h * 1e9)},{int(l * 1e9)},{int(c * 1e9)},{v},ESZ3\n' for t, (o, h, l, c, v) in zip(unix(10**9), values))
    if layout == 'lean': return ''.join(f'{(t.hour * 60 + t.minute) * 60000},{o},{h},{l},{c},{v}\n' for t, (o, h, l, c, v) in zip(bars.index.tz_convert('UTC'), values))
    return 'Date,Time,Open,High,Low,Close,Volume\n' + rows('%Y-%m-%d,%H:%M', _ZONE)


TEXTS = {layout: written_as(layout, WALK[:40]).encode() for layout in PLATFORMS}


@pytest.mark.parametrize('layout', PLATFORMS)
def test_every_layout_by_its_content(tmp_path, layout):
    bars = WALK[:390] if layout == 'lean' else WALK
    path = tmp_path/NAMED.get(layout, 'bars.csv')
    path.write_text(written_as(layout, bars))
    assert sniff_layout(path).name == layout
    back, rejects = read_bars(path)
    assert not len(rejects) and (back.index == bars.index).all() and (back[_PRICES].to_numpy() == bars[_PRICES].to_numpy()).all()
    assert (back.volume.to_numpy() == bars.volume.to_numpy()).all()
    assert ('contract' in back) == (layout in ('ninjatrader', 'databento', 'lean'))
    assert list(back.get('contract', pd.Series(['ES 12-13'])).unique()) == ['ES 12-13']


@pytest.mark.skipif(not shared.exists(), reason='the folder of real data is not here')
def test_the_formats_of_the_platforms():
    truth = pd.read_csv(shared/'formats/truth_es_20131007.csv', parse_dates=['ts']).set_index('ts').tz_convert(_ZONE)
    for path in sorted((shared/'formats').glob('*')):
        if path.name.startswith('VIX'): continue
        bars, rejects = read_bars(path)
        assert not len(rejects) and (bars.index == truth.index).all() and (bars[[*_PRICES, 'volume']].to_numpy(float) == truth[[*_PRICES, 'volume']].to_numpy(float)).all(), path.name


def test_day_first_or_month_first(tmp_path):
    "Of Kibot's and BacktestMarket's files the dates decide, and where they contradict the separator the user does."
    path = tmp_path/'bars.csv'
    path.write_text(written_as('kibot').replace('10/07/2013', '10/14/2013'))
    assert sniff_layout(path).name == 'kibot'
    path.write_text(written_as('backtestmarket').replace(';', ','))
    with pytest.raises(BadData, match=r'backtestmarket \(day first, America/Chicago\) or kibot \(month first, America/New_York\)'): read_bars(path)
    bars, _ = read_bars(path, layout='backtestmarket')
    assert (bars.index == WALK.index).all()
    path.write_text(written_as('kibot') + ''.join(f'{d}/10/2013,10:00,4000,4000,4000,4000,5\n' for d in range(13, 28)))
    with pytest.raises(BadData, match='layout='): read_bars(path)


def test_packed_or_in_another_alphabet(tmp_path):
    text = written_as('generic').encode()
    ways = {'a.csv.gz': gzip.compress(text), 'a.csv.zst': pa.Codec('zstd').compress(text, asbytes=True), 'a.csv': text.replace(b'\n', b'\r\n'), 'b.csv': text.decode().encode('utf-16'),
            'c.csv': b'\xef\xbb\xbf' + text, 'd.csv': text.replace(b'\n', b'\r'), 'e.csv': text.replace(b',', b';').replace(b'.', b','), 'f.csv': b'\n\n' + text, 'g.tsv': text.replace(b',', b'\t'),
            'h.csv': text.replace(b',', b'|')}
    for name, content in ways.items():
        (tmp_path/name).write_bytes(content)
        bars, rejects = read_bars(tmp_path/name)
        assert len(bars) == len(WALK) and not len(rejects) and (bars.index == WALK.index).all() and (bars.close.to_numpy() == WALK.close.to_numpy()).all(), name


def test_a_zip_is_a_folder(tmp_path):
    with zipfile.ZipFile(tmp_path/'es.zip', 'w') as z:
        for k, part in enumerate((WALK[:390], WALK[390:])): z.writestr(f'in/part{k}.csv', written_as('generic', part))
        z.writestr('README.md', 'nothing')
    bars, rejects = read_bars(tmp_path/'es.zip')
    assert len(bars) == len(WALK) and not len(rejects)


def zipped(name, content):
    with zipfile.ZipFile(file := io.BytesIO(), 'w', zipfile.ZIP_DEFLATED) as z: z.writestr(name, content)
    return file.getvalue()


def parquet_of(bars):
    bars.to_parquet(file := io.BytesIO())
    return file.getvalue()


def of_minutes(row, head='timestamp,open,high,low,close,volume\n', day='2020-05-06', hour=10):
    "A file of an hour, whose rows are what `row` says of each minute."
    return (head + ''.join(f'{day} {hour:02d}:{m:02d},{row(m)}\n' for m in range(60))).encode()


GENERIC = written_as('generic').encode()
IN_BILLIONTHS = written_as('databento').split('\n', 1)[1]
BAD = {  # what a file may hold, and what the sentence about it says
    'empty.csv': (b'', 'is empty: export'), 'blank.csv': (b'\n \r\n\n', 'is empty'), 'header.csv': (b'timestamp,open,high,low,close,volume\n', 'no row of data: export'),
    'bomb.csv.gz': (gzip.compress(bytes(2**27)), 'unpacks to more than 300 times'), 'bomb.csv.zst': (pa.Codec('zstd').compress(bytes(2**27), asbytes=True), 'unpacks to more'),
    'bomb.zip': (zipped('bars.csv', bytes(2**27)), 'bars.csv: unpacks to more than 300 times'), 'inside.zip': (zipped('more.zip', zipped('bars.csv', GENERIC)), 'holds no .txt, .csv'),
    'cut.csv.gz': (gzip.compress(GENERIC)[:-9], 'damaged, cut off'), 'junk.zip': (b'PK\x03\x04' + bytes(99), 'zip is damaged'), 'cut.zip': (zipped('bars.csv', GENERIC)[:-40], 'pack it again'),
    'zeros.csv': (bytes(5000), 'bytes of zero, which no text does: copy'), 'zeros first.csv': (bytes(512) + GENERIC, 'line 1: begins with bytes of zero'),
    'latin.csv': (written_as('generic').replace('Date,Time,Open,High', 'Datum,Zeit,Eröffnung,Höchst').encode('latin-1'), 'line 1: .*Datum.* is no layout known here: give the file a header line'),
    'long.csv': (b'x' * 3_000_000, 'give the file a header line'), 'page.csv': (b'<!DOCTYPE html>\n<html><body>404</body></html>\n', 'give the file a header line'), 'nonsense.csv': (b'a,b,c\n1,2,3\n', 'layout'),
    'commas.csv': (GENERIC.replace(b'.', b','), 'line 2: 11 fields where 7 belong: is the comma also the decimal point'),
    'ambiguous.csv': (of_minutes(lambda m: '4000,4001,3999,4000,5', day='06/05/2020'), 'in the month 6 or 5.*layout=month-first or layout=day-first'),
    'missing hour.csv': (of_minutes(lambda m: '4000,4001,3999,4000,5', day='2020-03-08', hour=2), 'line 2: the time does not exist .* tz='),
    'doubled hour.csv': (of_minutes(lambda m: '4000,4001,3999,4000,5', day='2020-11-01', hour=1), 'line 2: the time .* happens twice .* tz='),
    'hundred.csv': (GENERIC.replace(b'.', b''), 'times 100: divide'), 'billion.csv': (('ts,id,x,y,open,high,low,close,volume\n' + IN_BILLIONTHS.replace(',ESZ3', '')).encode(), 'times 1,000,000,000: divide'),
    'two contracts.csv': (of_minutes(lambda m: '4000,4000,4000,4000,5\n2020-05-06 10:%02d,3990,3990,3990,3990,5' % m), 'line 3: 60 rows have the same time .* different contracts'),
    'days.csv': (b'Date,Open,High,Low,Close,Volume\n2020-01-06,1,1,1,1,5\n2020-01-07,1,1,1,1,5\n', 'one bar a day.* export bars of one minute'),
    'no volume.csv': (b'time,open,high,low,close\n2020-01-06 09:30,1,1,1,1\n', "no column 'volume' .* export it"), 'empty volume.csv': (of_minutes(lambda m: '1,1,1,1,'), 'line 2: the volume is missing .* export it'),
    'no volumes.csv': (of_minutes(lambda m: '1,1,1,1,0'), 'every volume is zero, .* export it'), 'no time.csv': (b'open,high,low,close,volume\n1,1,1,1,1\n', 'no column holds the time .* name it ts'),
    'bars.dbn': (b'DBN\x01' + bytes(50), 'dbn|DBN'), 'bars.parquet': (parquet_of(WALK)[:-100], 'not a Parquet file'),
    'book.csv': (b'ts_event,rtype,action,side,price,size,bid_px_00\n1381152600000000000,1,T,A,1669000000000,1,1\n', 'order book'),
    'months.csv': (b'timestamp,open,high,low,close,volume\nOct 7 2013 09:30,1,1,1,1,5\n', 'not known here: write')}


@pytest.mark.parametrize('name', BAD)
def test_what_no_row_is_at_fault_for(tmp_path, name):
    content, message = BAD[name]
    (tmp_path/name).write_bytes(content)
    with pytest.raises(BadData, match=message) as e: read_bars(tmp_path/name)
    assert name in str(e.value) and '\n' not in str(e.value) and ': ' in str(e.value)


@pytest.mark.parametrize('name', [*BAD, 'a folder'])
def test_the_command_says_it_in_one_line(tmp_path, monkeypatch, capsys, name):
    "The command itself, called here: exit code 2, one line, and nothing written."
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    (tmp_path/'data').mkdir()
    for k, part in enumerate((WALK[:390], WALK[390:])) if name == 'a folder' else []: (tmp_path/f'data/{k}.csv').write_text(written_as('generic', part))
    content, message = BAD.get(name, (b'buy low\nsell high\n', 'notes.txt, line 1: .* header line'))
    path = tmp_path/'data'/('notes.txt' if name == 'a folder' else name)
    path.write_bytes(content)
    try:
        with pytest.raises(SystemExit) as stop: main(data=str(path.parent if name == 'a folder' else path), model='none', placebo=0, out='out')
    finally: signal.signal(signal.SIGTERM, before)
    reading, *said = capsys.readouterr().err.strip().split('\n')
    assert stop.value.code == 2 and reading.startswith('reading ') and len(said) == 1 and said[0].startswith('vpoc_backtest: ') and re.search(message, said[0])
    assert not (tmp_path/'out').exists()


HARMLESS = {  # what a file may hold, how many bars that is, and what is said of the rows refused
    'cut off.csv': (GENERIC[:-20], 779, ['5 fields where 7 belong']), 'no end of line.csv': (GENERIC.rstrip(b'\n'), 780, []), 'one.csv': (b'timestamp,open,high,low,close,volume\n2020-05-06 10:00,4000,4001,3999,4000,5', 1, []),
    'zeros last.csv': (GENERIC + bytes(4096), 780, ['1 fields where 7 belong']), 'zero.csv': (of_minutes(lambda m: '4000,4001,3999,4000,' + '\0' * (m == 7) + '5'), 59, ['the volume is missing or no number']),
    'latin.csv': (b'\n'.join(line + (b',B\xf6rse', b',Z\xfcrich')[k > 0] for k, line in enumerate(GENERIC.split(b'\n')[:-1])), 780, []),
    'mark.csv': (b'\xef\xbb\xbf' + GENERIC, 780, []), **{f'{a}.csv': (GENERIC.decode().encode(a), 780, []) for a in ('utf-16', 'utf-16-le', 'utf-16-be', 'utf-32')},
    'no volume.csv': (of_minutes(lambda m: '4000,4001,3999,4000,' + '5' * (m != 7)), 59, ['the volume is missing or no number']),
    'two contracts.csv': (of_minutes(lambda m: f'4000,4000,4000,4000,5,ESM0\n2020-05-06 10:{m:02d},3990,3990,3990,3990,5,ESU0', 'timestamp,open,high,low,close,volume,symbol\n'), 120, []),
    'doubled hour.csv': (of_minutes(lambda m: '4000,4001,3999,4000,5') + of_minutes(lambda m: '4000,4001,3999,4000,5', '', '2020-11-01', 1), 60, [f'the time does not exist or happens twice in {_ZONE}'] * 60)}


@pytest.mark.parametrize('name', HARMLESS)
def test_what_can_be_read_is_read(tmp_path, name):
    content, bars_in_it, reasons = HARMLESS[name]
    (tmp_path/name).write_bytes(content)
    bars, rejects = read_bars(tmp_path/name)
    assert (len(check_bars(bars)), rejects.reason.tolist()) == (bars_in_it, reasons)
    whole = bars.index.isin(WALK.index) & (len(bars) >= 779)
    assert (bars[_PRICES][whole].to_numpy() == WALK[_PRICES][WALK.index.isin(bars.index)].to_numpy()).all()


def test_ten_million_rows(tmp_path):
    "Twenty years of minutes without a pause but the daily one, by the day; two hours a year do not exist or happen twice."
    days = pd.date_range('2000-01-01', periods=7247).strftime('%Y-%m-%d')
    day = ''.join(f'DAY {h:02d}:{m:02d},4000,4001,3999,{4000 + m % 3 / 4},{h + m + 1}\n' for h in range(24) if h != 17 for m in range(60))
    with open(tmp_path/'bars.csv', 'w') as f:
        f.write('timestamp,open,high,low,close,volume\n')
        f.writelines(day.replace('DAY', d) for d in days)
    bars, rejects = read_bars(tmp_path/'bars.csv')
    assert len(bars) + len(rejects) == 7247 * 1380 > 10**7 and set(rejects.reason) == {f'the time does not exist or happens twice in {_ZONE}'} and len(rejects) == 120 * 20
    assert bars.volume.sum() == 7247 * sum(h + m + 1 for h in range(24) if h != 17 for m in range(60)) - rejects.volume.sum() and bars.index.is_monotonic_increasing
    (tmp_path/'bars.csv').unlink()  # pytest keeps folders


def test_a_bad_file_among_good_ones_is_named(tmp_path):
    for k, part in enumerate((WALK[:390], WALK[390:])): (tmp_path/f'{k}.csv').write_text(written_as('generic', part))
    (tmp_path/'notes.txt').write_text('buy low\nsell high\n')
    with pytest.raises(BadData, match='notes.txt'): read_bars(tmp_path)


def test_hours_that_do_not_exist_or_happen_twice(tmp_path):
    rows = [f'2020-{day} {hour}:{m:02d},4000,4001,3999,4000,5' for day, hour in (('03-08', '02'), ('11-01', '01'), ('11-01', '09')) for m in range(60)]
    (tmp_path/'bars.csv').write_text('timestamp,open,high,low,close,volume\n' + '\n'.join(rows))
    bars, rejects = read_bars(tmp_path/'bars.csv')
    assert len(bars) == 60 and set(rejects.reason) == {f'the time does not exist or happens twice in {_ZONE}'} and len(rejects) == 120


def test_spreads_and_missing_names_are_refused(tmp_path):
    text = written_as('databento')
    lines = text.split('\n')
    lines[5], lines[6] = lines[5].replace('ESZ3', 'ESZ3-ESH4'), lines[6].replace('ESZ3', '')
    (tmp_path/'bars.csv').write_text('\n'.join(lines))
    bars, rejects = read_bars(tmp_path/'bars.csv')
    assert rejects.reason.tolist() == ['ESZ3-ESH4 is a spread, not a contract', 'the contract is missing'] and len(bars) == len(WALK) - 2
    (tmp_path/'bars.csv').write_text(text.replace(',symbol', '').replace(',ESZ3', '').replace('5002', '5003', 9))
    with pytest.raises(BadData, match='holds the instruments 5002, 5003'): read_bars(tmp_path/'bars.csv')


def test_trades_become_minutes(tmp_path):
    rng = np.random.default_rng(0)
    ts = pd.Timestamp('2020-01-06 09:30', tz=_ZONE) + pd.to_timedelta(np.sort(rng.integers(0, 3 * 3600 * 10**6, 5000)), 'us')
    trades = pd.DataFrame({'ts': ts, 'price': 4000 + rng.integers(-40, 40, 5000) / 4, 'size': rng.integers(1, 9, 5000)})
    trades.to_csv(tmp_path/'trades.csv', index=False)
    trades.to_parquet(tmp_path/'trades.parquet')
    for name in ('trades.csv', 'trades.parquet'):
        bars, rejects = read_bars(tmp_path/name)
        assert not len(rejects)
        pd.testing.assert_frame_equal(bars, bars_from_trades(trades), check_index_type=False)
    (tmp_path/'trades.csv').write_text((tmp_path/'trades.csv').read_text().replace(f',{trades.price[7]},{trades["size"][7]}', ',x,1', 1))
    bars, rejects = read_bars(tmp_path/'trades.csv')
    assert len(rejects) == 1 and bars.volume.sum() == trades['size'].sum() - trades['size'][int(rejects.line[0]) - 2]


def dbn_of(bars):
    import databento_dbn as dbn
    spans = [SimpleNamespace(start_date=date(2013, 1, 1), end_date=date(2014, 1, 1), symbol='5002')]
    about = dbn.Metadata('GLBX.MDP3', 0, dbn.SType.RAW_SYMBOL, dbn.SType.INSTRUMENT_ID, dbn.Schema.OHLCV_1M, symbols=['ESZ3'], mappings=[SimpleNamespace(raw_symbol='ESZ3', intervals=spans)])
    records = [dbn.OHLCVMsg(dbn.RType.OHLCV_1M, 1, 5002, int(t.timestamp()) * 10**9, *(int(p * 10**9) for p in prices), int(v))
               for t, *prices, v in zip(bars.index, *(bars[c] for c in (*_PRICES, 'volume')))]
    return about.encode() + b''.join(map(bytes, records))


@pytest.mark.parametrize('packed', [False, True])
def test_dbn(tmp_path, packed):
    pytest.importorskip('databento_dbn')
    content = dbn_of(WALK)
    path = tmp_path/('es.dbn.zst' if packed else 'es.dbn')
    path.write_bytes(pa.Codec('zstd').compress(content, asbytes=True) if packed else content)
    bars, rejects = read_bars(path)
    assert not len(rejects) and (bars.index == WALK.index).all() and (bars[_PRICES].to_numpy() == WALK[_PRICES].to_numpy()).all() and list(bars.contract.unique()) == ['ES 12-13']
    (tmp_path/'cut.dbn').write_bytes(content[:-7])
    with pytest.raises(BadData, match='cut off'): read_bars(tmp_path/'cut.dbn')


def test_dbn_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'databento_dbn', None)
    (tmp_path/'es.dbn').write_bytes(b'DBN\x01' + bytes(200))
    with pytest.raises(BadData, match='pip install databento-dbn'): read_bars(tmp_path/'es.dbn')


def test_mended_rows_join_the_rest(tmp_path):
    lines = written_as('kibot').split('\n')
    lines[9], lines[20] = lines[9].replace('.', ':', 1), lines[20][:25]
    (tmp_path/'bars.csv').write_text('\n'.join(lines))
    bars, rejects = read_bars(tmp_path)
    assert rejects.line.tolist() == [10, 21] and rejects.text.tolist() == [lines[9], lines[20]]
    mended = rejects.assign(correction=[written_as('kibot').split('\n')[9], ''])
    mended.to_csv(tmp_path/'corrections.csv', index=False)
    again, still = read_bars(tmp_path)
    assert len(again) == len(WALK) - 1 and still.line.tolist() == [21] and again.index[9] == WALK.index[9]
    assert len(read_bars(tmp_path/'bars.csv', corrections=tmp_path/'corrections.csv')[0]) == len(WALK) - 1
    mended.assign(correction='nonsense').to_csv(tmp_path/'corrections.csv', index=False)
    assert read_bars(tmp_path)[1].line.tolist() == [10, 21]
    for change, message in ((mended.assign(text='else', correction='x'), 'not .else. any more'), (mended.assign(line=99999, correction='x'), 'no line 99999'), (mended.drop(columns='correction'), "no column 'correction'")):
        change.to_csv(tmp_path/'corrections.csv', index=False)
        with pytest.raises(BadData, match=message): read_bars(tmp_path)


@pytest.mark.parametrize('way', ['file', 'folder', 'gzip', 'zip', 'folder of packed files', 'utf-16'])
def test_rejects_written_corrected_and_read_again(tmp_path, way):
    "Three rows are spoilt in one of two files; two are corrected, one of them wrongly."
    whole = written_as('kibot').split('\n')
    halves = whole[:390], whole[390:]
    torn = [*halves[0]]
    torn[9], torn[20], torn[30] = torn[9].replace('.', ':', 1), torn[20][:25], 'lost'
    first, second = ('\n'.join(h).rstrip() + '\n' for h in (torn, halves[1]))
    data = tmp_path/'data'
    data.mkdir()
    path = data
    if way in ('file', 'utf-16'): (path := data/'bars.csv').write_bytes((first + second).encode('utf-16' if way == 'utf-16' else 'utf-8'))
    elif way == 'gzip': (path := data/'bars.csv.gz').write_bytes(gzip.compress((first + second).encode()))
    elif way == 'zip':
        with zipfile.ZipFile(path := data/'bars.zip', 'w') as z: z.writestr('a.csv', first), z.writestr('b.csv', second)
    else:
        pack, ending = (gzip.compress, '.gz') if way == 'folder of packed files' else (bytes, '')
        for name, text in (('a.csv', first), ('b.csv', second)): (data/(name + ending)).write_bytes(pack(text.encode()))
    bars, rejects = read_bars(path)
    assert rejects.line.tolist() == [10, 21, 31] and rejects.text.tolist() == [torn[9], torn[20], torn[30]] and len(bars) == len(WALK) - 3
    rejects.to_csv(tmp_path/'rejects.csv', index=False)  # as a run directory keeps them
    rejects = pd.read_csv(tmp_path/'rejects.csv', keep_default_na=False)
    mended = rejects.assign(correction=[halves[0][9], 'still torn', ''])
    corrections = data/'corrections.csv' if path.is_dir() else tmp_path/'corrections.csv'
    mended.to_csv(corrections, index=False)
    again, still = read_bars(path, corrections=None if path.is_dir() else corrections)
    assert len(again) == len(bars) + 1 and again.index[9] == WALK.index[9] and again.open.iloc[9] == WALK.open.iloc[9]
    assert still.line.tolist() == [21, 31] and still.text.tolist() == ['still torn', 'lost']


def test_a_vix_column_serves_as_of_the_session_before(tmp_path):
    bars = random_walk(5, bars_per_session=13)
    level = pd.Series(np.linspace(15, 25, len(bars)), bars.index).round(2)
    bars.assign(VIX=level).tz_localize(None).to_csv(tmp_path/'merged.csv')
    market = load_market(tmp_path/'merged.csv')
    closes = level.groupby(bars.index.tz_localize(None).normalize()).last()
    assert market.vix.to_dict() == closes.to_dict() and 'vix' in market.bars
    part = load_market_until(bars.assign(VIX=level), tmp_path, 30)
    assert part.vix[:-1].to_dict() == closes[:2].to_dict()  # the third day is not over: its value may still change, those before may not
    (tmp_path/'vix.csv').write_text('date,close\n2015-01-02,17.79\n')
    assert load_market(tmp_path/'merged.csv', tmp_path/'vix.csv').vix.to_dict() == {pd.Timestamp('2015-01-02'): 17.79}


def load_market_until(bars, folder, rows):
    bars[:rows].tz_localize(None).to_csv(folder/'part.csv')
    return load_market(folder/'part.csv')


def accidents(content, rng):
    "One to three of the things that happen to files."
    for _ in range(rng.integers(1, 4)):
        at, lines = int(rng.integers(max(len(content), 1))), content.split(b'\n')
        i, j = rng.integers(len(lines), size=2)
        kind = rng.integers(7)
        if kind == 0: content = content[:at] + bytes([rng.integers(256)]) + content[at + 1:]
        if kind == 1: content = content[:at]
        if kind == 2: content = content[:at] + content[at + int(rng.integers(1, 60)):]
        if kind == 3: content = content[:at] + rng.integers(0, 256, 5, dtype=np.uint8).tobytes() + content[at:]
        if kind == 4: lines[i], lines[j] = lines[j], lines[i]
        if kind == 5: lines[i:i] = [lines[j]] * int(rng.integers(1, 5))
        if kind == 6: lines = [b','.join([*f, f[i % len(f)]]) for f in (line.split(b',') for line in lines)]
        if kind > 3: content = b'\n'.join(lines)
    return content


@pytest.mark.parametrize('layout', PLATFORMS)
def test_accidents(tmp_path, layout):
    rng, path, whole = np.random.default_rng(7), tmp_path/NAMED.get(layout, 'bars.csv'), written_as(layout, WALK[:60]).encode()
    for _ in range(40):
        content = accidents(whole, rng)
        path.write_bytes(content)
        try: bars, rejects = read_bars(path)
        except BadData as e: assert '\n' not in str(e)
        else:
            check_bars(bars)
            text = content if content[:2] not in (b'\xff\xfe', b'\xfe\xff') else content.decode('utf-16', errors='replace').encode()
            lines = [line for line in text.replace(b'\r\n', b'\n').replace(b'\r', b'\n').split(b'\n') if line.strip(b' \t"')]
            assert len(bars) + len(rejects) in (len(lines), len(lines) - 1)  # with or without a header line
            assert rejects.text.map(len).gt(0).all()


@pytest.mark.parametrize('layout', PLATFORMS)
def test_cut_off_in_the_last_line(tmp_path, layout):
    "Wherever a file breaks off in its last line: that line is refused or its volume is smaller, and nothing else changes."
    path, whole = tmp_path/NAMED.get(layout, 'bars.csv'), written_as(layout, WALK[:60]).encode().rstrip(b'\n')
    path.write_bytes(whole)
    truth, _ = read_bars(path)
    last = len(whole) - whole.rfind(b'\n') - 1
    for n in {1, 2, 3, *range(4, last, 5), last - 1}:
        path.write_bytes(whole[:-n])
        bars, rejects = read_bars(path)
        pd.testing.assert_frame_equal(bars[_PRICES][:59], truth[_PRICES][:59])
        assert bars.volume.to_list()[:59] == truth.volume.to_list()[:59]
        assert (len(bars), len(rejects)) == (59, 1) or len(bars) == 60 and bars[_PRICES].equals(truth[_PRICES]) and bars.volume.iloc[-1] <= truth.volume.iloc[-1]


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv('VPOC_CACHE', str(tmp_path/'cache'))
    monkeypatch.setattr(readers, '_LEAST_TO_KEEP', 0)
    lines = written_as('kibot').split('\n')
    lines[5] = 'torn'
    (tmp_path/'ESZ13.csv').write_text('\n'.join(lines))
    return tmp_path


def test_the_second_reading_is_the_first(kept, monkeypatch):
    bars, rejects = read_bars(kept/'ESZ13.csv')
    readers._finish_keeping()
    assert len(list((kept/'cache').iterdir())) == 1
    monkeypatch.setattr(readers, '_read_tables', None)  # would fail if it were called
    again, refused = read_bars(kept/'ESZ13.csv')
    pd.testing.assert_frame_equal(bars, again)
    pd.testing.assert_frame_equal(rejects, refused)
    again.loc[again.index[0], 'open'] = 1.  # it is the caller's own


def test_whatever_changes_is_read_anew(kept, monkeypatch):
    before, _ = read_bars(kept/'ESZ13.csv')
    read_bars(kept/'ESZ13.csv', tz='America/Chicago'), read_bars(kept/'ESZ13.csv', stamp='end')
    stat = (kept/'ESZ13.csv').stat()
    text = (kept/'ESZ13.csv').read_text()
    (kept/'ESZ13.csv').write_text(text.replace(text.split('\n')[-2].rsplit(',', 1)[1], '9' * len(text.split('\n')[-2].rsplit(',', 1)[1])))
    os.utime(kept/'ESZ13.csv', ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size, same date
    assert read_bars(kept/'ESZ13.csv')[0].volume.sum() != before.volume.sum()
    (kept/'ESZ13.csv').rename(kept/'ESH14.csv')
    assert list(read_bars(kept/'ESH14.csv')[0].contract.unique()) == ['ES 03-14']
    monkeypatch.setattr(readers, '_code_digest', lambda: b'another version')
    read_bars(kept/'ESH14.csv')
    readers._finish_keeping()
    assert len(list((kept/'cache').iterdir())) == 6


def test_a_cache_that_fails_is_no_cache(kept, monkeypatch):
    bars, _ = read_bars(kept/'ESZ13.csv')
    readers._finish_keeping()
    for file in (kept/'cache').iterdir(): file.write_bytes(file.read_bytes()[:200])
    pd.testing.assert_frame_equal(bars, read_bars(kept/'ESZ13.csv')[0])
    (kept/'no folder').write_text('')
    monkeypatch.setenv('VPOC_CACHE', str(kept/'no folder'/'cache'))
    pd.testing.assert_frame_equal(bars, read_bars(kept/'ESZ13.csv')[0])
    monkeypatch.setattr(os, 'replace', lambda *_: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    monkeypatch.setenv('VPOC_CACHE', str(kept/'full'))
    pd.testing.assert_frame_equal(bars, read_bars(kept/'ESZ13.csv')[0])
    readers._finish_keeping()
    assert not list((kept/'full').iterdir())


def test_the_sixteen_newest_are_kept(kept):
    for k in range(20): read_bars(kept/'ESZ13.csv', tz=f'Etc/GMT+{k % 12}', stamp=('open', 'end')[k // 12])
    readers._finish_keeping()
    assert len(list((kept/'cache').iterdir())) == 16


def half_file(cache, name, age=0):
    "What a killed writer leaves, so many seconds ago."
    path = cache/f'.{name}.arrow{_UNFINISHED}x.arrow'
    path.write_bytes(b'PAR1')
    os.utime(path, (time.time() - age,) * 2)
    return path


@pytest.mark.parametrize('locks, lives', [(True, 60), (False, 90_000)], ids=['locks', 'no locks'])
def test_what_the_killed_leave_is_swept_up_and_never_read(kept, monkeypatch, locks, lives):
    "A process that dies right after reading leaves the whole, nothing, or a file that nobody reads and that a later one removes: at once, or after a day where there are no locks."
    code = ("import os, sys; from vpoc_backtest import readers; readers._LEAST_TO_KEEP = 0\nreaders.read_bars(sys.argv[1])\nos._exit(0)")
    env = {**os.environ, 'PYTHONPATH': str(Path(__file__).parents[1])}
    subprocess.run([sys.executable, '-c', code, str(kept/'ESZ13.csv')], env=env, timeout=120, check=True)
    (kept/'cache').mkdir(exist_ok=True)
    if not locks: monkeypatch.setattr(storage, '_lock', lambda path: None)
    old, new = half_file(kept/'cache', 'old', lives), half_file(kept/'cache', 'new', 0 if locks else 80_000)
    for _ in range(2): assert len(read_bars(kept/'ESZ13.csv', stamp='end')[0]) == len(WALK) - 1
    readers._finish_keeping()
    assert not old.exists() and new.exists()


def test_half_files_are_not_counted(kept):
    (kept/'cache').mkdir()
    half = [half_file(kept/'cache', k) for k in range(20)]
    for k in range(16): read_bars(kept/'ESZ13.csv', tz=f'Etc/GMT+{k % 12}', stamp=('open', 'end')[k // 12])
    readers._finish_keeping()
    assert len(list((kept/'cache').glob('[!.]*.arrow'))) == 16 and all(path.exists() for path in half)


def test_processes_at_once(kept):
    "Two that read one file and always write what they read, and one that takes what the others have kept, from one moment on: all are right, and one file stays."
    walk = random_walk(40, seed=3)
    walk.tz_localize(None).rename_axis('timestamp').to_csv(kept/'walk.csv')
    code = """
import sys
from vpoc_backtest import data, readers, storage
path, writes = sys.argv[1], sys.argv[2] == 'writes'
readers._LEAST_TO_KEEP, look, found = 0, readers._kept, 0
def kept(*what):
    global found
    got = None if writes else look(*what)
    found += got is not None
    return got
readers._kept = kept
print('ready', flush=True), sys.stdin.readline()
seen = {(data._fingerprint(bars), len(rejects)) for bars, rejects in (readers.read_bars(path) for _ in range(25))}
print(*seen, found, sep='|')"""
    env = {**os.environ, 'PYTHONPATH': str(Path(__file__).parents[1])}
    processes = [subprocess.Popen([sys.executable, '-c', code, str(kept/'walk.csv'), role], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for role in ('writes', 'writes', 'reads')]
    for p in processes: assert p.stdout.readline() == 'ready\n'
    for p in processes: p.stdin.write('go\n'), p.stdin.flush()
    told = [p.communicate(timeout=120)[0].strip().split('|') for p in processes]
    right = str((data._fingerprint(read_bars(kept/'walk.csv')[0]), 0))
    readers._finish_keeping()
    assert [t[0] for t in told] == [right] * 3 and [len(t) for t in told] == [2] * 3
    assert [int(t[1]) > 0 for t in told] == [False, False, True]
    assert [f.suffix for f in (kept/'cache').iterdir()] == ['.arrow']
