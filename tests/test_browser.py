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

import pandas as pd
import pytest

from vpoc_backtest.backtest import run_backtest
from vpoc_backtest.data import random_walk
from vpoc_backtest.display import COLOURS
from vpoc_backtest.signals import SignalRules, make_signals
from vpoc_backtest.vpoc import session_levels

room = importlib.import_module('vpoc_backtest.explore')  # `explore` of the package is the function

CODE = '''import importlib
room = importlib.import_module('vpoc_backtest.explore')
from vpoc_backtest.backtest import run_backtest
from vpoc_backtest.data import random_walk
from vpoc_backtest.signals import SignalRules, make_signals
from vpoc_backtest.vpoc import session_levels
bars, rules = random_walk(120, seed=3), SignalRules(rule='migration')
result = run_backtest(bars, make_signals(session_levels(bars), rules))
def broken(*args): raise RuntimeError('an error that must be seen')
room._widest = broken
room.explore(bars, result, rules=rules, date='2015-03-25')'''
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
    for package in ('ipywidgets', 'plotly', 'anywidget', 'jupyterlab'):
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


def figure_of(view):
    "What the page must show of a view, computed here."
    bars, rules = random_walk(120, seed=3), SignalRules(rule='migration')
    result = run_backtest(bars, make_signals(session_levels(bars), rules))
    return room._figure_values(room.load_day(room.split_sessions(bars, result, rules=rules), view))


def differences(browser, wanted):
    "Where the figure in the page does not hold the numbers and colours that are wanted; they are sent in pieces."
    script = """return [...document.querySelector('.js-plotly-plot').data].map(trace => {
        const plain = {marker_color: trace.marker?.color, marker_symbol: trace.marker?.symbol}
        for (const key of ['x', 'y', 'open', 'high', 'low', 'close', 'text']) if (trace[key]) plain[key] = Array.from(trace[key])
        return [trace.name, plain] })"""
    shown = dict(browser.driver.execute_script(script))
    return ([(name, key) for name, values in wanted.items() for key, value in values.items() if list(value) != (shown[name].get(key) or [])]
            + ['the colour of nodes'] * (shown['nodes']['marker_color'] != COLOURS['purple']))


def test_explorer_answers_clicks(browser, lab, tmp_path):
    from selenium.webdriver.common.keys import Keys
    browser.open(lab, 1240, 1300)
    ready = """const session = window.jupyterapp?.shell.currentWidget?.sessionContext
        return !!(session?.isReady && session.session?.kernel?.status === 'idle' && jupyterapp.shell.currentWidget.context.isReady)"""
    browser.wait(lambda: browser.driver.execute_script(ready), 'JupyterLab with its notebook and kernel')
    browser.driver.execute_script("jupyterapp.commands.execute('notebook:run-all-cells')")

    heading = lambda: (browser.texts('.widget-html b') or [''])[0]
    labels = lambda: browser.texts('.js-plotly-plot .annotation-text')
    words = lambda: ' '.join(browser.texts('.widget-html p'))
    inside = lambda: browser.driver.execute_script("return [...document.querySelectorAll('.js-plotly-plot .bars path')].filter(p => getComputedStyle(p).fill === 'rgb(86, 180, 233)').length")
    press = lambda name: next(b for b in browser.all('.jupyter-button') if b.text.strip() == name).click()

    def agrees(seen):
        wanted = figure_of(seen)
        browser.wait(lambda: not differences(browser, wanted), 'a figure that agrees', 20)

    def after(act):
        "The heading when it has changed; it is written after the figure was sent, so the rest is waited for."
        before = heading()
        act()
        return browser.wait(lambda: heading() if heading() not in ('', before) else None, 'another heading')

    browser.wait(lambda: inside() and len(labels()) >= 6, 'the first figure', 90)
    assert 'session ' in heading() and 'times ET' in heading() and 'limit' in words() and 'ET' in words()
    at_first = labels()
    second = after(lambda: press('next trade'))
    browser.wait(lambda: labels() != at_first and ('Bought' in words() or 'Sold' in words()), 'the figure and the words of the next trade', 20)
    picture = browser.all('.jp-OutputArea-output')[0].screenshot_as_png
    (Path(os.environ.get('SCREENSHOTS', tmp_path))/'explorer.png').write_bytes(picture)  # SCREENSHOTS=nbs/images renews the one of the docs
    assert len(picture) > 30_000
    number = lambda text: int(text.split('session ')[1].split(' of')[0].replace(',', ''))
    third = after(lambda: browser.all('.noUi-handle')[0].send_keys(Keys.ARROW_RIGHT))
    assert number(third) == number(second) + 1

    view = room.View(pd.bdate_range('2015-01-02', periods=120)[number(second) - 1])
    assert after(lambda: press('previous session')) == second
    agrees(view)
    narrow = inside()
    at = after(lambda: press('80%'))
    agrees(replace(view, pct=.8))
    assert number(at) == number(second) and '80%' in at and inside() > narrow  # the same session, more of its profile in the value area
    assert [b.text for b in browser.all('.widget-toggle-button.mod-active')][-1] == '80%'
    after(lambda: press('ohlc'))
    agrees(replace(view, pct=.8, spread='ohlc'))

    press('widest value area')  # broken on purpose
    browser.wait(lambda: 'an error that must be seen' in ' '.join(browser.texts('.widget-html pre')), 'the error under the picture')
    assert number(heading()) == number(at)
    after(lambda: press('next loss'))
    browser.wait(lambda: not browser.texts('.widget-html pre'), 'the next click to take the error away', 20)
    assert browser.console() == [] and browser.hosts() <= {'127.0.0.1'}
