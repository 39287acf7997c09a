"""The report as its reader sees it.

The page in a real browser, narrow and wide, light, dark and on paper; the notebook beside it in a kernel.
"""
import base64
import io
import json

import numpy as np
import pandas as pd
import pytest

from vpoc_backtest.data import ES, add_sessions, random_walk
from vpoc_backtest.features import FilterConfig
from vpoc_backtest.ml_backtest import EvidenceConfig, run_pipeline, save_run
from vpoc_backtest.run_config import _NO_REJECTS, MarketData, RunConfig
from vpoc_backtest.signals import SignalRules

FIGURES = 16  # pictures in the page, beside the drawing


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "The directory of a small run of both strategies, with all the evidence."
    bars = add_sessions(random_walk(300, bars_per_session=78, seed=2))
    settings = RunConfig(rules=SignalRules(rule='migration'), filter=FilterConfig(arch='mlp', members=4, hidden=(16,), dropout=0., learning_rate=.01, first_sessions=150,
                                                                                  garch=False, min_confidence=10.))
    walk = MarketData('a random walk', 'made here', bars, len(bars), _NO_REJECTS, None, ES)
    run = run_pipeline(walk, settings, model='train', device='cpu', evidence=EvidenceConfig(placebos=19))
    assert len(run.results['original'].trades) > 20
    return save_run(run, tmp_path_factory.mktemp('run')/'out')


@pytest.fixture
def page(browser, folder):
    "Opens the report at a width in CSS pixels, with a colour scheme, on screen or as printed."
    cdp = browser.driver.execute_cdp_cmd

    def opened(width, scheme='light', medium='screen'):
        screen = {'width': width, 'height': 900, 'deviceScaleFactor': 1, 'mobile': False}
        cdp('Emulation.setDeviceMetricsOverride', screen)
        colours = [{'name': 'prefers-color-scheme', 'value': scheme}]
        cdp('Emulation.setEmulatedMedia', {'media': medium, 'features': colours})
        browser.open((folder/'report.html').as_uri())
        return browser
    yield opened
    cdp('Emulation.clearDeviceMetricsOverride', {})
    cdp('Emulation.setEmulatedMedia', {'media': '', 'features': []})


LAYOUT = """
const all = selector => [...document.querySelectorAll(selector)];
const outside = e => !e.closest('div.wide, pre, svg') && e.getBoundingClientRect().right > innerWidth + 1;
const drawn = i => i.complete && i.naturalWidth && i.getBoundingClientRect().width;
const long = svg => [...svg.querySelectorAll('path[style]')].filter(p => p.getTotalLength() > 900).length;
const size = e => parseFloat(getComputedStyle(e).fontSize);
return {inner: innerWidth, page: document.documentElement.scrollWidth,
        wide: all('body *').filter(outside).map(e => e.tagName + '.' + e.className),
        empty: [...document.images].filter(i => !drawn(i)).length, images: document.images.length,
        lines: all('svg').map(long),
        text: Math.min(...all('p, td, th, i, figcaption, output').map(size))};
"""
CONTRAST = """
const linear = v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
const light = c => {
  const [r, g, b] = c.match(/[\\d.]+/g).map(v => linear(v / 255));
  return .2126 * r + .7152 * g + .0722 * b;
};
const paper = light(getComputedStyle(document.body).backgroundColor);
const contrast = e => {
  const style = getComputedStyle(e);
  const ink = light(e.tagName == 'path' ? style.stroke : style.color);
  return (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05);
};
const shown = [...document.querySelectorAll('body, a, td, figcaption, .plot i, .plot path[style]')];
return shown.map(contrast).concat([paper]);
"""
PRINTED = """
const style = selector => getComputedStyle(document.querySelector(selector));
return [style('img').filter, style('body').color, style('nav').display];
"""


@pytest.mark.parametrize('width', [400, 1400])
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_the_page_is_whole(page, width, scheme):
    browser = page(width, scheme)
    seen = browser.driver.execute_script(LAYOUT)
    assert seen['inner'] == width
    assert seen['page'] <= width and seen['wide'] == [], 'the page scrolls sideways'
    assert seen['empty'] == 0 and seen['images'] == FIGURES, 'a picture is not drawn'
    assert seen['lines'] == [2, 2], 'the chart is not drawn'
    assert seen['text'] >= 11
    *contrasts, paper = browser.driver.execute_script(CONTRAST)
    assert min(contrasts) > 3 and (paper > .9) == (scheme == 'light')
    assert browser.console() == [] and browser.hosts() == set()


def test_the_page_on_paper(page):
    "Printed from a dark screen it is black on white, and no picture is inverted."
    browser = page(794, 'dark', 'print')  # A4
    seen = browser.driver.execute_script(LAYOUT)
    assert seen['empty'] == 0 and seen['page'] <= 794
    assert browser.driver.execute_script(PRINTED) == ['none', 'rgb(0, 0, 0)', 'none']
    printed = browser.driver.execute_cdp_cmd('Page.printToPDF', {'preferCSSPageSize': True})
    pdf = base64.b64decode(printed['data'])
    assert pdf.startswith(b'%PDF') and pdf.count(b'/Subtype /Image') >= FIGURES
    assert 5 < pdf.count(b'/Type /Page\n') < 40
    assert browser.console() == []


def test_the_drawing_answers(page, folder):
    "The line under the chart shows the figures of equity.csv."
    from selenium.webdriver import ActionChains, Keys
    browser, equity = page(1000), pd.read_csv(folder/'equity.csv', parse_dates=['date'])

    def told(row):
        def one(key, shown):
            worth, fall = row[f'{key}_equity'], 100 * row[f'{key}_drawdown']
            return f'{shown} ${worth:,.0f} ({fall:.1f}%)'.replace('-', '−')
        date = f'{row.date:%a} {row.date.day} {row.date:%b %Y}'
        return f'{date}: {one("original", "rule")}, {one("ml", "rule + filter")}'
    chart, = browser.all('figure.chart')
    assert browser.texts('figure.chart output') == [told(equity.iloc[-1])]
    ActionChains(browser.driver).move_to_element(browser.all('.plot.tall')[0]).perform()
    middle, = browser.texts('figure.chart output')
    at = [told(row) for _, row in equity.iterrows()].index(middle)
    assert abs(at - len(equity) // 2) <= 1
    browser.driver.execute_script('arguments[0].focus()', chart)
    ActionChains(browser.driver).send_keys(Keys.ARROW_LEFT).perform()
    assert browser.texts('figure.chart output') == [told(equity.iloc[at - 1])]
    assert browser.console() == []


def outputs_of(notebook):
    "Outputs by cell, free of what names an execution."
    for cell in notebook['cells']:
        for output in cell.get('outputs', []):
            if output['output_type'] == 'stream':
                yield cell['id'], output['text'], None
                continue
            data = dict(output['data'])
            picture = data.pop('image/png', None)
            yield cell['id'], data, picture


def test_the_notebook_in_a_kernel(folder):
    "A kernel that executes the notebook in its folder finds the same words and the same pictures."
    reason = 'not installed: pip install -c constraints.txt -e ".[dev]"'
    nbformat = pytest.importorskip('nbformat', reason=reason)
    nbclient = pytest.importorskip('nbclient', reason=reason)
    from matplotlib.image import imread
    text = (folder/'report.ipynb').read_text(encoding='utf-8')
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == 'code':
            cell.outputs = []
            cell.execution_count = None
    place = {'metadata': {'path': str(folder)}}
    nbclient.NotebookClient(notebook, timeout=120, kernel_name='python3', resources=place).execute()
    saved = list(outputs_of(json.loads(text)))
    found = list(outputs_of(notebook))
    assert [s[:2] for s in saved] == [f[:2] for f in found] and len(saved) > 12
    pictures = [(a, b) for (_, _, a), (_, _, b) in zip(saved, found) if a]
    assert len(pictures) == 6
    for ours, theirs in pictures:
        a, b = (imread(io.BytesIO(base64.b64decode(p))) for p in (ours, theirs))
        assert a.shape == b.shape
        assert (np.abs(a - b).max(axis=2) > .05).mean() < .02  # lines may lie a fraction of a pixel apart
