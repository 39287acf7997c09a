"""The explorer in a real browser: JupyterLab is started, a notebook is run, and somebody clicks."""
import importlib
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pandas as pd
import pytest

from vpoc_backtest.backtest import run_backtest
from vpoc_backtest.data import sample_market
from vpoc_backtest.signals import make_signals
from vpoc_backtest.vpoc import session_levels

room = importlib.import_module('vpoc_backtest.explore')  # `explore` of the package is the function

CODE = '''import importlib
room = importlib.import_module('vpoc_backtest.explore')
from vpoc_backtest.backtest import run_backtest
from vpoc_backtest.data import sample_market
from vpoc_backtest.signals import make_signals
from vpoc_backtest.vpoc import session_levels
bars = sample_market()[0]
result = run_backtest(bars, make_signals(session_levels(bars)))
panel = room.explore(bars, result, date='2014-10-01')
def broken(*args): raise RuntimeError('an error that must be seen')
widest, room._widest = room._widest, broken
panel'''
QUIET = {'@jupyterlab/apputils-extension/notification.jupyterlab-settings': {'fetchNews': 'false', 'checkForUpdates': False}}


def notebook(code):
    cell = {'cell_type': 'code', 'id': 'c0', 'metadata': {}, 'source': code, 'execution_count': None, 'outputs': []}
    return {'cells': [cell], 'metadata': {'kernelspec': {'display_name': 'python3', 'language': 'python', 'name': 'python3'}}, 'nbformat': 4, 'nbformat_minor': 5}


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


@pytest.fixture
def lab(tmp_path, browser):
    "The address of a JupyterLab that serves one notebook, with a token and nothing of the user's own."
    for package in ('anywidget', 'litecharts', 'jupyterlab'):
        pytest.importorskip(package, reason=f'no {package}: pip install -c constraints.txt -e ".[dev]"')
    (tmp_path/'work').mkdir()
    (tmp_path/'work/explore.ipynb').write_text(json.dumps(notebook(CODE)))
    for name, settings in QUIET.items():
        (tmp_path/'settings'/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/'settings'/name).write_text(json.dumps(settings))
    port, token = free_port(), secrets.token_hex(16)
    options = {'ServerApp.ip': '127.0.0.1', 'ServerApp.port': port, 'ServerApp.port_retries': 0, 'ServerApp.root_dir': tmp_path/'work',
               'ServerApp.open_browser': False, 'ServerApp.allow_root': True, 'IdentityProvider.token': token, 'LabApp.user_settings_dir': tmp_path/'settings',
               'LabApp.expose_app_in_browser': True, 'LabApp.extension_manager': 'readonly', 'LabApp.check_for_updates_class': 'jupyterlab.NeverCheckForUpdate'}
    own = {name: str(tmp_path/name.lower()) for name in ('JUPYTER_CONFIG_DIR', 'JUPYTER_DATA_DIR', 'JUPYTER_RUNTIME_DIR', 'IPYTHONDIR')}
    with open(tmp_path/'lab.log', 'w') as log:
        server = subprocess.Popen([sys.executable, '-m', 'jupyterlab', *(f'--{k}={v}' for k, v in options.items())], stdout=log, stderr=log, env=os.environ | own)
        try:
            wait_for(f'http://127.0.0.1:{port}/api/status?token={token}', server, tmp_path/'lab.log')
            yield f'http://127.0.0.1:{port}/doc/tree/explore.ipynb?token={token}'
        finally:
            server.terminate()  # it ends its kernels
            server.wait(20)


def wait_for(url, server, log, seconds=60):
    until = time.monotonic() + seconds
    while True:
        try: return urlopen(url, timeout=5).close()
        except OSError:
            assert server.poll() is None and time.monotonic() < until, f'JupyterLab did not start: {log.read_text()[-2000:]}'
            time.sleep(.1)


class Chart:
    "The chart in the page: what it shows, its controls, and how long each took from the click to the picture."
    def __init__(self, browser):
        self.browser, self.run, self.took = browser, browser.driver.execute_script, {}

    @property
    def root(self): return self.browser.all('.vpoc-chart')[0]

    @property
    def drawn(self): return int(self.run("return document.querySelector('.vpoc-chart')?.dataset.drawn ?? 0"))

    def after(self, name, act):
        before = self.drawn
        act()
        self.browser.wait(lambda: self.drawn > before, f'a picture after {name}', 20)
        took = self.run("return document.querySelector('.vpoc-chart').dataset.took")
        self.took.setdefault(name, []).append(float(took.rsplit(': ', 1)[1]))

    def press(self, name, label=None):
        script = "[...document.querySelectorAll('.vpoc-chart [data-name]')].find(b => b.dataset.name === arguments[0]).click()"
        self.after(label or name, lambda: self.run(script, name))

    def pick(self, label, value):
        script = """const field = document.querySelector(`.vpoc-chart [aria-label="${arguments[0]}"]`)
            field.value = arguments[1]
            field.dispatchEvent(new Event('change'))"""
        self.after(label, lambda: self.run(script, label, str(value)))

    def key(self, key, label): self.after(f'key {label}', lambda: self.root.send_keys(key))
    def pressed(self, name): return self.run("return [...document.querySelectorAll('.vpoc-chart [data-name]')].find(b => b.dataset.name === arguments[0]).getAttribute('aria-pressed')", name) == 'true'
    def words(self): return ' '.join(self.browser.texts('.vc-words p'))
    def note(self): return ' '.join(self.browser.texts('.vc-note'))
    def legend(self): return ' '.join(self.browser.texts('.vc-legend > *'))

    def keep(self, name, folder):
        time.sleep(.2)
        picture = self.root.screenshot_as_png
        (Path(os.environ.get('SCREENSHOTS', folder))/f'{name}.png').write_bytes(picture)  # SCREENSHOTS=nbs/images renews those of the docs
        assert len(picture) > 30_000

    def frames(self, act):
        "The longest time between two frames while something is done, in milliseconds."
        self.run("""window.frames_seen = []; window.watching = true; let before = performance.now()
            const next = () => { const now = performance.now(); frames_seen.push(now - before); before = now; if (watching) requestAnimationFrame(next) }
            requestAnimationFrame(next)""")
        act()
        return max(self.run('watching = false; return frames_seen.slice(2)'))


def day_of(**view):
    "What the chart must show of a view, computed here."
    bars = sample_market()[0]
    return room.load_day(room.split_sessions(bars, run_backtest(bars, make_signals(session_levels(bars)))), room.View(**view))


@pytest.fixture
def chart(browser, lab):
    browser.open(lab, 1240, 1300)
    ready = """const session = window.jupyterapp?.shell.currentWidget?.sessionContext
        return !!(session?.isReady && session.session?.kernel?.status === 'idle' && jupyterapp.shell.currentWidget.context.isReady)"""
    browser.wait(lambda: browser.driver.execute_script(ready), 'JupyterLab with its notebook and kernel')
    browser.driver.execute_script("jupyterapp.commands.execute('notebook:run-all-cells')")
    browser.wait(lambda: browser.texts('.vc-words p'), 'the first picture', 240)
    return Chart(browser)


def test_explorer_answers_clicks(browser, chart, tmp_path):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
    from selenium.webdriver.common.keys import Keys
    width = lambda css: browser.driver.execute_script('return document.querySelector(arguments[0]).clientWidth', css)
    assert width('.vpoc-chart') == width('.jp-OutputArea-output')  # full width at first sight
    assert '1 October 2014' in chart.words() and 'times ET' in chart.words() and 'VWAP' in chart.legend()

    # the numbers are those of Python
    chart.press('spread ohlc')
    chart.pick('share', .8)
    day = day_of(date=pd.Timestamp('2014-10-01'), spread='ohlc', pct=.8)
    assert 'ohlc, peak, single, 80%' in chart.words() and chart.pressed('spread ohlc')
    assert [f'{day.levels[k]:,.2f}' for k in ('vpoc', 'vah', 'val')] == browser.texts('.vc-words tr:last-child td')[1:4]
    close = day.bars.close.iloc[-1]
    assert 'Wed 1 Oct 2014 15:59 ET' in chart.legend() and f'C{close:,.2f}' in chart.legend() and f'VPOC{day.levels.vpoc:,.2f}' in chart.legend()
    chart.pick('contract', 'MES')
    assert '· MES ·' in chart.words()
    chart.pick('contract', 'ES')

    # the crosshair tells of the bar under it
    box = browser.all('.vc-box')[0]
    ActionChains(browser.driver).move_to_element_with_offset(box, -100, 0).perform()
    browser.wait(lambda: '15:59 ET' not in chart.legend(), 'the bar under the pointer', 5)

    # keys reach the chart, and not JupyterLab
    chart.key('n', 'n')
    assert 'Bought' in chart.words() or 'Sold' in chart.words()
    chart.key('l', 'l')
    assert '−$' in chart.words()
    at = chart.words()
    chart.key(Keys.ARROW_LEFT, '←')
    chart.key(Keys.ARROW_RIGHT, '→')
    assert chart.words() == at and len(browser.all('.jp-Cell')) == 1

    # an error is seen, and goes away
    chart.press('widest value area')
    assert 'an error that must be seen' in chart.note()
    chart.press('next trade')
    assert chart.note() == ''

    # replay
    chart.press('replay')
    for _ in range(4): chart.press('bar on')
    assert 'Replay: 5 bars are known, up to that of 09:34 ET.' in chart.words() and 'At its close' not in chart.words()
    before = chart.drawn
    chart.root.send_keys(' ')
    browser.wait(lambda: chart.drawn > before + 2, 'a replay that runs', 20)
    chart.root.send_keys(' ')
    time.sleep(.5)
    chart.key(Keys.ESCAPE, 'Escape')
    assert 'At its close' in chart.words()

    # a span, by dragging with Shift held
    chart.pick('sessions', 3)
    chart.keep('explorer', tmp_path)
    chart.press(' TPO')
    chart.keep('explorer_tpo', tmp_path)
    chart.press(' 5 min')
    drag = ActionChains(browser.driver).key_down(Keys.SHIFT).move_to_element_with_offset(box, -300, 0).click_and_hold().move_by_offset(200, 0)
    chart.after('drag a span', lambda: drag.release().key_up(Keys.SHIFT).perform())
    assert 'Composite of' in chart.words() and chart.pressed('composite')
    chart.key(Keys.ESCAPE, 'Escape')
    assert 'Composite of' not in chart.words()

    # a narrower window, the other theme
    browser.driver.set_window_size(900, 1300)
    browser.wait(lambda: width('.vc-box') == width('.vpoc-chart') - 2 < 750, 'a narrower picture', 5)
    browser.driver.set_window_size(1240, 1300)
    browser.driver.execute_script("jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
    browser.wait(lambda: browser.all('.vpoc-chart[data-theme="dark"]'), 'a dark chart')
    chart.pick('sessions', 20)
    chart.keep('explorer_dark', tmp_path)
    shown = box.screenshot_as_png
    ActionChains(browser.driver).scroll_from_origin(ScrollOrigin.from_element(box), 0, -240).perform()
    browser.wait(lambda: box.screenshot_as_png != shown, 'a picture zoomed by the wheel', 5)
    assert browser.console() == [] and browser.hosts() <= {'127.0.0.1'}


def test_a_click_is_answered_in_time(browser, chart, capsys):
    "Twenty sessions of one-minute bars; the median of each control. `pytest -s` prints the table of the notebook."
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
    from selenium.webdriver.common.keys import Keys
    chart.pick('sessions', 20)
    chart.press(' 1 min')
    chart.took.clear()
    for way in ('next session', 'previous session', 'next trade', 'previous trade', 'next loss'):
        for _ in range(5): chart.press(way)
    for key, label in ((Keys.ARROW_RIGHT, '→'), (Keys.ARROW_LEFT, '←'), ('n', 'n'), ('l', 'l')):
        for _ in range(5): chart.key(key, label)
    for _ in range(3):
        for spread in ('ohlc', 'close', 'uniform'): chart.press(f'spread {spread}', 'spread')
        for poc in ('cluster', 'peak'): chart.press(f'VPOC {poc}', 'VPOC')
        for area in ('pairs', 'single'): chart.press(f'area {area}', 'value area')
        for contract in ('MES', 'ES'): chart.pick('contract', contract)
        for minutes in (' 5 min', ' 30 min', ' TPO', ' 1 min'): chart.press(minutes, f'bars{minutes}')
        for layer in ('profile', 'VWAP', 'developing', 'naked'):
            for _ in range(2): chart.press(f'show {layer}', 'a layer on or off')
        for _ in range(2): chart.press('composite')
        for count in (3, 20): chart.pick('sessions', count)
    for share in (.6, .8, .9, .7) * 2: chart.pick('share', share)
    chart.press('replay')
    for _ in range(8): chart.press('bar on')
    for _ in range(4): chart.press('bar back')
    chart.press('end replay')
    wheel = ActionChains(browser.driver).scroll_from_origin(ScrollOrigin.from_element(browser.all('.vc-box')[0]), 0, -120)
    longest = chart.frames(lambda: [wheel.perform() for _ in range(8)])
    table = pd.DataFrame({name: {'median, ms': pd.Series(took).median(), 'worst, ms': max(took), 'clicks': len(took)} for name, took in chart.took.items()}).T
    with capsys.disabled(): print(f'\n{table.round().astype(int).to_string()}\nlongest frame while the wheel zooms: {longest:.0f} ms')
    limit = 150 * max(1, os.getloadavg()[0] / (os.cpu_count() or 1)) * 2  # other work on the same cores is not the chart's
    assert table['median, ms'].max() < limit and browser.console() == []


def test_page_opens_without_a_network(browser, tmp_path):
    pytest.importorskip('litecharts', reason='no litecharts: pip install -c constraints.txt -e ".[interactive]"')
    from vpoc_backtest.chart import _chart_page
    bars = sample_market()[0]
    result = run_backtest(bars, make_signals(session_levels(bars)))
    dates = [f'{date:%Y-%m-%d}' for date in result.trades.date.unique()]
    rows = ''.join(f'<tr data-session="{date}"><td>{date}</td></tr>' for date in dates)
    (tmp_path/'page.html').write_text(f'<!doctype html><meta charset="utf-8"><body>{_chart_page(room.split_sessions(bars, result))}<table>{rows}</table>', encoding='utf-8')
    browser.open(f'file://{tmp_path}/page.html', 1400, 1000)
    chart = Chart(browser)
    browser.wait(lambda: browser.texts('.vc-words p'), 'the last trade', 10)
    browser.driver.execute_script("document.addEventListener('session', e => { window.told = e.detail.date })")
    day = day_of(date=pd.Timestamp(dates[3]))
    chart.after('a click on a trade', lambda: browser.driver.execute_script('document.querySelectorAll("tr[data-session]")[3].firstChild.click()'))
    assert [f'{day.levels[k]:,.2f}' for k in ('vpoc', 'vah', 'val')] == browser.texts('.vc-words tr:last-child td')[1:4]
    assert browser.driver.execute_script('return told') == dates[3]
    for act in (lambda: chart.key('n', 'n'), lambda: chart.press(' TPO'), lambda: chart.press('previous trade')): act()
    assert browser.driver.execute_script('return told') == dates[3]
    assert len(chart.root.screenshot_as_png) > 30_000
    browser.driver.set_window_size(420, 900)
    browser.wait(lambda: browser.driver.execute_script('return document.documentElement.scrollWidth <= innerWidth'), 'a page as narrow as a telephone', 5)
    assert max(map(max, chart.took.values())) < 500 and browser.console() == [] and browser.hosts() == set()


TWIN = """
const [whole, n, meta, twin] = arguments, plain = value => JSON.parse(JSON.stringify(value));
const seen = day => plain({bars: day.bars, dev: Object.fromEntries(Object.entries(day.dev).map(([k, v]) => [k, [...v]])), own: day.own, vwap: day.vwap, sd: day.sd,
    trades: day.trades, lines: day.lines.filter(line => line[3] < n), letters: day.tpo.slice(0, 2), profile: day.profile});
return [seen(VpocChart.knownAfter(VpocChart.unpack(whole), n, meta)), seen(VpocChart.unpack(twin))];
"""


def test_a_replay_in_the_page_is_that_of_python(browser, tmp_path):
    "What the script knows after so many bars is what Python packs for them: profile to the contract, all else exactly."
    pytest.importorskip('litecharts', reason='no litecharts: pip install -c constraints.txt -e ".[interactive]"')
    from vpoc_backtest.chart import _chart_page, _pack_days
    from vpoc_backtest.explore_day import load_day
    from vpoc_backtest.profiles import _SPREADS
    bars = sample_market()[0]
    result = run_backtest(bars, make_signals(session_levels(bars)))
    sessions = room.split_sessions(bars, result)
    trades = result.trades.iloc[[2, 30, 60]]
    (tmp_path/'page.html').write_text(f'<!doctype html><meta charset="utf-8"><body>{_chart_page(sessions, trades.date)}', encoding='utf-8')
    browser.open(f'file://{tmp_path}/page.html', 1400, 1000)
    chart = Chart(browser)
    browser.wait(lambda: browser.texts('.vc-words p'), 'the last trade', 10)
    for trade, spread in zip(trades.itertuples(), _SPREADS):
        view = room.View(trade.date, spread=spread)
        whole, = map(json.loads, _pack_days([load_day(sessions, view)]))
        left = bars.index.get_loc(trade.exit_ts) - bars.index.get_loc(f'{trade.date:%Y-%m-%d} 09:30')
        for n in (1, 31, 60, 61, left, left + 1, 300, 390):
            twin, = map(json.loads, _pack_days([load_day(sessions, replace(view, until=n))]))
            here, there = browser.driver.execute_script(TWIN, whole, n, {'spread': spread, 'tick': .25}, twin)
            (low, volumes), (low_there, volumes_there) = here.pop('profile'), there.pop('profile')
            assert here == there and low == low_there
            assert abs(np.array(volumes) - volumes_there).max() < .51
    last = trades.iloc[-1]
    outcome = f'{last.r_multiple:+.2f} R'.replace('-', '−')
    words = lambda: ' '.join(browser.texts('.vc-words p'))
    assert outcome in words()
    chart.press('replay')
    for _ in range(3): chart.press('bar on')
    assert 'Replay: 4 bars are known, up to that of 09:33 ET.' in words() and outcome not in words() and not browser.texts('.vc-words td')
    chart.press('bar back')
    assert 'Replay: 3 bars' in words()
    chart.press('end replay')
    assert outcome in words() and browser.texts('.vc-words td') and browser.console() == []
