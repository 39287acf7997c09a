"""bars + rejects = rows read, for any rows, and no other error than BadData."""
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from vpoc_backtest.data import BadData, PRICES, ZONE, bar_files, check_bars, read_bars

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


def test_line_numbers_are_those_of_the_file(tmp_path):
    path = tmp_path/'bars.csv'
    path.write_text('timestamp,open,high,low,close,volume\n2020-01-06 09:30,1,1,1,1,1\n\ntorn\n2020-01-06 09:31,1,1,1,1,-1\n\n2020-01-06 09:32,1,1,1,1,1')
    bars, rejects = read_bars(path)
    assert len(bars) == 2 and dict(zip(rejects.line, rejects.reason)) == {4: '1 fields where 6 belong', 5: 'the volume is negative'}


@pytest.mark.parametrize('content, message', [('', 'is empty'), ('timestamp,open,high,low,close,volume\n', 'no row of data'), ('a,b,c\n1,2,3\n', 'layout'),
                                              ('time,open,high,low,close\n1,2,3,4,5\n', "no column 'volume'"), ('open,high,low,close,volume\n1,1,1,1,1\n', 'no column holds the time')])
def test_bad_files_are_one_sentence(tmp_path, content, message):
    (tmp_path/'bars.csv').write_text(content)
    with pytest.raises(BadData, match=message): read_bars(tmp_path/'bars.csv')


def test_parquet_with_a_time_index_and_names_in_any_case(tmp_path):
    index = pd.date_range('2020-01-06 14:30', periods=5, freq='min', tz='UTC')
    frame = pd.DataFrame({c.upper(): 4000. for c in PRICES}, index=index).assign(Volume=3)
    frame.to_parquet(tmp_path/'bars.parquet')
    bars, rejects = read_bars(tmp_path/'bars.parquet')
    assert len(bars) == 5 and not len(rejects) and str(bars.index.tz) == ZONE and bars.index[0].hour == 9


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
    assert not len(rejects) and (bars.index == pd.date_range('2013-10-07', periods=240, freq='min', tz=ZONE)).all()


def test_contracts_named_by_letters_in_a_column(tmp_path):
    rows = [f'2013-10-07 10:{m:02d},4000,4001,3999,4000,5,{c}' for m in range(30) for c in ('ESZ3', 'ESH4')]
    (tmp_path/'bars.csv').write_text('timestamp,open,high,low,close,volume,symbol\n' + '\n'.join(rows))
    bars, rejects = read_bars(tmp_path/'bars.csv')
    assert not len(rejects) and sorted(bars.contract.unique()) == ['ES 03-14', 'ES 12-13']


def test_what_lies_in_a_folder(tmp_path):
    (tmp_path/'bars.csv').write_text('timestamp,open,high,low,close,volume\n2020-01-06 10:00,1,1,1,1,1')
    for name in ('VIX.csv', 'old.zip', 'README.md'): (tmp_path/name).touch()
    (tmp_path/'folder.csv').mkdir()
    files, others = bar_files(tmp_path)
    assert [f.name for f in files] == ['bars.csv'] and [f.name for f in others] == ['VIX.csv', 'folder.csv', 'old.zip']


def test_broken_parquet(tmp_path):
    Path(tmp_path/'bars.parquet').write_bytes(b'PAR1 and nothing else')
    with pytest.raises(BadData, match='not a Parquet file'): read_bars(tmp_path/'bars.parquet')
