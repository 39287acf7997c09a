"""The explorer's wiring, without a browser: every control makes its view, and no error gets lost."""
import importlib
import json
from dataclasses import replace
from datetime import date
from pathlib import Path

import pandas as pd
import pytest

from vpoc_backtest.backtest import run_backtest
from vpoc_backtest.data import random_walk
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
    for package in ('ipywidgets', 'plotly', 'anywidget'): pytest.importorskip(package, reason=f'no {package}: pip install -c constraints.txt -e ".[interactive]"')


@pytest.fixture
def panel(extra, market): return room.explore(*market)


def agree(panel):
    "Controls, words and figure all show the view."
    shown = {name: control.value for name, control in panel.controls.items()}
    assert shown == panel.view.counting | {'slider': panel.day.number - 1, 'calendar': panel.view.date.date()}
    assert f'{panel.view.date.day} {panel.view.date:%B %Y}' in panel.texts['heading'].value
    assert panel.figure.data[3].x.sum() == panel.day.bars.volume.sum()
    assert panel.figure.layout.annotations[-2].text == f'VPOC {panel.day.levels.vpoc:,.2f}'


def test_begins_with_the_first_trade(panel, market):
    assert panel.view == room.View(market[1].trades.date.min())
    agree(panel)


@pytest.mark.parametrize('name, value', [('spread', 'ohlc'), ('spread', 'close'), ('poc', 'cluster'), ('area', 'pairs'), ('pct', .8)])
def test_toggles_count_anew(panel, name, value):
    before = panel.view
    panel.controls[name].value = value
    assert panel.view == replace(before, **{name: value})
    agree(panel)


def test_slider_and_calendar_choose_a_session(panel):
    panel.controls['slider'].value = 100
    assert panel.view.date == panel.sessions.dates[100]
    panel.controls['calendar'].value = date(2015, 10, 3)  # a Saturday
    assert panel.view.date == pd.Timestamp(2015, 10, 5)
    assert panel.texts['note'].value == 'Saturday 3 October 2015 has no session: this is the next one.'
    agree(panel)
    panel.controls['calendar'].value = None  # emptied
    agree(panel)
    assert panel.texts['note'].value == ''


@pytest.mark.parametrize('to', room._NAVIGATION)
def test_buttons_jump(panel, to):
    panel.controls['slider'].value = 150
    there = room.navigate(panel.sessions, panel.view, to)
    panel.jumps[to].click()
    assert panel.view == there and panel.view.date != panel.sessions.dates[150]
    agree(panel)


def test_says_where_there_is_nothing_more(panel):
    panel.controls['slider'].value = 0
    panel.jumps['previous trade'].click()
    assert panel.texts['note'].value == 'There is no previous trade.'
    panel.jumps['next session'].click()
    assert panel.texts['note'].value == ''


def test_no_jump_to_trades_without_a_result(extra, market):
    panel = room.explore(market[0])
    assert {to for to, button in panel.jumps.items() if button.disabled} == {'previous trade', 'next trade', 'next loss'}
    assert panel.view.date == panel.sessions.dates[-1]


def test_errors_are_raised_and_shown(panel, monkeypatch):
    def broken(*args): raise RuntimeError('lost & found')
    monkeypatch.setattr(room, 'load_day', broken)
    before = panel.view
    with pytest.raises(RuntimeError, match='lost'): panel.controls['slider'].value = 7
    assert 'lost &amp; found' in panel.texts['note'].value and panel.view == before
    monkeypatch.undo()
    panel.controls['slider'].value = 8
    assert panel.texts['note'].value == '' and panel.day.number == 9


def test_the_initial_balance_is_drawn_from_its_end_on(panel):
    panel.controls['slider'].value = 100
    day, balance = panel.day, panel.day.bars[:60]
    begin = {shape.y0: shape.x0 for shape in panel.figure.layout.shapes if shape.line.dash == 'dash' and shape.line.color == room.COLOURS['sky']}
    assert begin == {balance.high.max(): 60, balance.low.min(): 60} and f'{day.bars.index[60]:%H:%M}' == '10:30'
    assert {'IB high', 'IB low'} <= {label.text for label in panel.figure.layout.annotations}
    assert 'At its close: ' in panel.texts['words'].value


def test_labels_of_lines_do_not_overlap(market):
    from matplotlib import pyplot
    rules = SignalRules(rule='migration')
    sessions, most = room.split_sessions(market[0], rules=rules), 0
    for seen in sessions.dates[60:300:20]:
        day = room.load_day(sessions, room.View(seen))
        ax = room._plot_day(day)
        ax.figure.canvas.draw()
        labels = {line.label for line, _ in room._label_places(day)}
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
        'plotly saved 5 MB of JavaScript in it: run it with `jupyter nbconvert --execute --ExecutePreprocessor.store_widget_state=False`'
    outputs = [o for c in json.loads(path.read_text(encoding='utf-8'))['cells'] for o in c.get('outputs', [])]
    assert not any('application/vnd.jupyter.widget-view+json' in o.get('data', {}) for o in outputs), \
        'a view of a widget that is not saved: JupyterLab would show an error in place of its picture; take that entry out of the output'
