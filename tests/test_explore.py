"""The explorer's wiring, without a browser: every control makes its view, and no error gets lost."""
import importlib
import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from vpoc_backtest.backtest import run_backtest
from vpoc_backtest.data import random_walk
from vpoc_backtest.explore_day import _label_places
from vpoc_backtest.signals import SignalRules, make_signals
from vpoc_backtest.vpoc import session_levels

room = importlib.import_module('vpoc_backtest.explore')  # `explore` of the package is the function

notebooks = sorted((Path(__file__).parents[1]/'nbs').rglob('*.ipynb'))


@pytest.fixture(scope='module')
def market():
    bars = random_walk(300, seed=3)
    return bars, run_backtest(bars, make_signals(session_levels(bars), SignalRules(rule='migration')))


@pytest.fixture
def extra():
    for package in ('anywidget', 'litecharts'): pytest.importorskip(package, reason=f'no {package}: pip install -c constraints.txt -e ".[interactive]"')


@pytest.fixture
def panel(extra, market): return room.explore(*market)


def ask(panel, **asked): panel._answer(panel.widget, asked, [])
def days(panel): return [json.loads(text) for text in panel.widget.state['days']]


def agree(panel):
    "Controls, words and picture all show the view."
    state, day, tick = panel.widget.state, panel.day, panel.sessions.contract.tick_size
    json.dumps(state, allow_nan=False)
    assert state['view'] == panel.view.counting | {'date': f'{panel.view.date:%Y-%m-%d}', 'count': panel.view.count, 'until': panel.view.until}
    assert f'{panel.view.date.day} {panel.view.date:%B %Y}' in state['words'][0]
    last = days(panel)[-1]
    assert last['date'] == state['view']['date'] and last['own'] == {k: round(day.levels[k] / tick) for k in ('vpoc', 'val', 'vah')}
    assert abs(sum(last['profile'][1]) - day.bars.volume.sum()) < len(last['profile'][1]) and last['v'] == day.bars.volume.round().astype(int).tolist()


def test_begins_with_the_first_trade(panel, market):
    assert panel.view == room.View(market[1].trades.date.min())
    agree(panel)


@pytest.mark.parametrize('name, value', [('spread', 'ohlc'), ('spread', 'close'), ('poc', 'cluster'), ('area', 'pairs'), ('pct', .8), ('count', 5)])
def test_settings_count_anew(panel, name, value):
    before = panel.view
    ask(panel, what='set', **{name: value})
    assert panel.view == replace(before, **{name: value})
    agree(panel)


@pytest.mark.parametrize('count', [1, 3, 20])
def test_what_is_kept_is_what_would_be_computed(panel, count):
    "Whatever way leads to a view, the same is sent."
    ask(panel, what='set', date='2015-10-01')
    ask(panel, what='set', count=count)
    for to in ('next session', 'next session', 'next trade', 'previous session', 'next loss', 'previous trade'): ask(panel, what='go', to=to)
    ask(panel, what='set', pct=.8)
    ask(panel, what='replay', until=40)
    ask(panel, what='replay', until=None)
    sent = panel.widget.state['days']
    fresh = room.Explorer(panel.sessions, panel.view)
    assert fresh.widget.state['days'] == sent and len(sent) == count
    agree(panel)


def test_forgets_when_it_has_kept_too_much(panel, monkeypatch):
    monkeypatch.setattr(room, '_KEPT', 7)
    ask(panel, what='set', date=f'{panel.sessions.dates[150]:%Y-%m-%d}')
    ask(panel, what='set', count=5)
    for _ in range(9): ask(panel, what='go', to='next session')
    agree(panel)
    assert len(panel._kept) < 20


def test_date_chooses_a_session(panel):
    ask(panel, what='set', date='2015-10-03')  # a Saturday
    assert panel.view.date == pd.Timestamp(2015, 10, 5)
    assert panel.widget.state['note'] == 'Saturday 3 October 2015 has no session: this is the next one.'
    agree(panel)
    ask(panel, what='go', to='next session')
    assert panel.widget.state['note'] == ''


def test_a_micro_contract_changes_the_money_only(panel):
    before = days(panel)
    ask(panel, what='set', contract='MES')
    assert panel.widget.state['meta']['symbol'] == 'MES' and days(panel) == before
    with pytest.raises(KeyError): ask(panel, what='set', contract='NQ')


@pytest.mark.parametrize('to', room._NAVIGATION)
def test_buttons_jump(panel, to):
    ask(panel, what='set', date=f'{panel.sessions.dates[150]:%Y-%m-%d}')
    there = room.navigate(panel.sessions, panel.view, to)
    ask(panel, what='go', to=to)
    assert panel.view == there and panel.view.date != panel.sessions.dates[150]
    agree(panel)


def test_says_where_there_is_nothing_more(panel):
    ask(panel, what='set', date=f'{panel.sessions.dates[0]:%Y-%m-%d}')
    answers = panel.widget.state['answer']
    for _ in range(2): ask(panel, what='go', to='previous trade')
    assert panel.widget.state['note'] == 'There is no previous trade.' and panel.widget.state['answer'] == answers + 2


def test_no_jump_to_trades_without_a_result(extra, market):
    panel = room.explore(market[0])
    assert not panel.widget.state['meta']['trades'] and panel.view.date == panel.sessions.dates[-1]


def test_errors_are_raised_and_shown(panel, monkeypatch):
    def broken(*args): raise RuntimeError('lost & found')
    monkeypatch.setattr(room, 'load_day', broken)
    before = panel.view
    with pytest.raises(RuntimeError, match='lost'): ask(panel, what='go', to='next session')
    assert 'lost & found' in panel.widget.state['error'] and panel.view == before
    monkeypatch.undo()
    ask(panel, what='go', to='next session')
    assert panel.widget.state['error'] is None and panel.view != before


def test_the_initial_balance_is_drawn_from_its_end_on(panel):
    ask(panel, what='set', date=f'{panel.sessions.dates[100]:%Y-%m-%d}')
    balance = panel.day.bars[:60]
    begin = {tick / 4: at for kind, _, tick, at, _ in days(panel)[-1]['ranges'] if kind == 'ib'}
    assert begin == {balance.high.max(): 60, balance.low.min(): 60} and f'{panel.day.bars.index[60]:%H:%M}' == '10:30'
    assert 'At its close: ' in ' '.join(panel.widget.state['words'])


def test_a_session_without_volume_has_no_levels_and_is_shown():
    bars = random_walk(30, bars_per_session=78, seed=1)
    days = bars.index.normalize()
    bars.loc[days == days.unique()[12], 'volume'] = 0
    sessions = room.split_sessions(bars)
    def strict(text): return json.loads(text, parse_constant=lambda name: pytest.fail(f'{name} is no JSON'))
    for i in (12, 13, 14, 20):
        panel = room.Explorer(sessions, room.View(sessions.dates[i], count=3))
        json.dumps(panel.widget.state, allow_nan=False)
        own = [strict(text)['own']['vpoc'] for text in panel.widget.state['days']]
        assert [vpoc is None for vpoc in own] == [at == 12 for at in range(i - 2, i + 1)]
        assert 'nan' not in str([panel.widget.state['words'], panel.widget.state['table']]).lower() and room._png(panel.day)


def test_labels_of_lines_do_not_overlap(market):
    from matplotlib import pyplot
    rules = SignalRules(rule='migration')
    sessions, most = room.split_sessions(market[0], rules=rules), 0
    for seen in sessions.dates[60:300:20]:
        day = room.load_day(sessions, room.View(seen))
        ax = room._plot_day(day)
        ax.figure.canvas.draw()
        labels = {line.label for line, _ in _label_places(day)}
        boxes = [text.get_window_extent() for text in ax.texts if text.get_text() in labels]
        pyplot.close(ax.figure)
        assert all(box.x0 >= ax.bbox.x0 for box in boxes)
        apart = [min(a.x1, b.x1) <= max(a.x0, b.x0) or min(a.y1, b.y1) <= max(a.y0, b.y0) + 1 for i, a in enumerate(boxes) for b in boxes[:i]]
        assert all(apart)
        most = max(most, len(boxes))
    assert most > 6


def test_shows_a_picture_where_there_is_no_kernel(panel):
    assert panel._repr_png_().startswith(b'\x89PNG')
    assert set(panel._repr_mimebundle_()) == {'application/vnd.jupyter.widget-view+json'}
    assert repr(panel).startswith(room._heading(panel.day))


@pytest.mark.parametrize('path', notebooks, ids=lambda p: p.name)
def test_no_notebook_carries_a_widget(path):
    assert 'widgets' not in json.loads(path.read_text(encoding='utf-8'))['metadata'], \
        'it saved the script of the chart in it: run it with `jupyter nbconvert --execute --ExecutePreprocessor.store_widget_state=False`'
    outputs = [o for c in json.loads(path.read_text(encoding='utf-8'))['cells'] for o in c.get('outputs', [])]
    assert not any('application/vnd.jupyter.widget-view+json' in o.get('data', {}) for o in outputs), \
        'a view of a widget that is not saved: JupyterLab would show an error in place of its picture; take that entry out of the output'
