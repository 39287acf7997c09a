"""The report as its reader sees it.

The page in a real browser, narrow and wide, light, dark and on paper; the notebook beside it in a kernel.
"""
import base64
import io
import json
import re

import numpy as np
import pandas as pd
import pytest

from vpoc_backtest.data import ES, add_sessions, random_walk
from vpoc_backtest.features import FilterConfig
from vpoc_backtest.ml_backtest import EvidenceConfig, run_pipeline, save_run
from vpoc_backtest.performance import _format_metric
from vpoc_backtest.run_config import _NO_REJECTS, MarketData, RunConfig
from vpoc_backtest.signals import SignalRules

FIGURES = 16  # pictures in the page, beside the drawing


@pytest.fixture(scope='module')
def walk():
    "A small run of both strategies, with all the evidence."
    bars = add_sessions(random_walk(300, bars_per_session=78, seed=2))
    settings = RunConfig(rules=SignalRules(rule='migration'), filter=FilterConfig(arch='mlp', members=4, hidden=(16,), dropout=0., learning_rate=.01, first_sessions=150,
                                                                                  garch=False, min_confidence=10.))
    market = MarketData('a random walk', 'made here', bars, len(bars), _NO_REJECTS, None, ES)
    run = run_pipeline(market, settings, model='train', device='cpu', evidence=EvidenceConfig(placebos=19))
    assert len(run.results['original'].trades) > 20
    return run


@pytest.fixture(scope='module')
def folder(walk, tmp_path_factory):
    "The directory of that run, as it is written without the extra `interactive`."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('vpoc_backtest.report_page._session_chart', lambda *given: (None, []))
        return save_run(walk, tmp_path_factory.mktemp('run')/'out')


@pytest.fixture(scope='module')
def charted(walk, tmp_path_factory):
    "The same with the extra: its page has the interactive chart."
    pytest.importorskip('litecharts', reason='not installed: pip install -c constraints.txt -e ".[interactive]"')
    return save_run(walk, tmp_path_factory.mktemp('charted')/'out')


@pytest.fixture
def page(browser, folder):
    "Opens the report at a width in CSS pixels, with a colour scheme, on screen or as printed."
    cdp = browser.driver.execute_cdp_cmd

    def opened(width, scheme='light', medium='screen', place=folder):
        screen = {'width': width, 'height': 900, 'deviceScaleFactor': 1, 'mobile': False}
        cdp('Emulation.setDeviceMetricsOverride', screen)
        colours = [{'name': 'prefers-color-scheme', 'value': scheme}]
        cdp('Emulation.setEmulatedMedia', {'media': medium, 'features': colours})
        browser.open((place/'report.html').as_uri())
        cdp('Emulation.setDeviceMetricsOverride', screen)
        return browser
    yield opened
    cdp('Emulation.clearDeviceMetricsOverride', {})
    cdp('Emulation.setEmulatedMedia', {'media': '', 'features': []})


OPEN = "for (const part of document.querySelectorAll('details')) part.open = true;"
LAYOUT = """
const all = selector => [...document.querySelectorAll(selector)];
const outside = e => !e.closest('div.wide, pre, svg, .meaning') && e.getBoundingClientRect().right > innerWidth + 1;
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
const shown = [...document.querySelectorAll('body, td, figcaption, .plot i, .plot path[style], .tiles dt, .loss, summary span, td button')];
return shown.map(contrast).concat([paper]);
"""
OVERLAPS = """
const boxes = [...document.querySelectorAll('div.wide > table, p, summary, figure, dl')].map(e => [e.getBoundingClientRect(), e])
    .filter(([box]) => box.height);
const over = ([a, e], [b, f]) => !e.contains(f) && !f.contains(e) && a.top < b.bottom - 2 && b.top < a.bottom - 2 && a.left < b.right && b.left < a.right;
return boxes.slice(1).flatMap((box, i) => over(boxes[i], box) ? [box[1].textContent.slice(0, 40)] : []);
"""
PRINTED = """
const style = selector => getComputedStyle(document.querySelector(selector));
return [style('img').filter, style('body').color, style('.all').display];
"""


@pytest.mark.parametrize('width', [400, 1400])
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_the_page_is_whole(page, width, scheme):
    browser = page(width, scheme)
    browser.driver.execute_script(OPEN)
    seen = browser.driver.execute_script(LAYOUT)
    assert seen['inner'] == width
    assert seen['page'] <= width and seen['wide'] == [], 'the page scrolls sideways'
    assert seen['empty'] == 0 and seen['images'] == FIGURES, 'a picture is not drawn'
    assert seen['lines'] == [3, 3], 'the chart is not drawn: two strategies and one contract held'
    assert seen['text'] >= 11
    *contrasts, paper = browser.driver.execute_script(CONTRAST)
    assert min(contrasts) > 3 and (paper > .9) == (scheme == 'light')
    assert browser.console() == [] and browser.hosts() == set()


def test_the_page_on_paper(page):
    "Printed from a dark screen it is black on white, and no picture is inverted."
    browser = page(794, 'dark', 'print')  # A4
    seen = browser.driver.execute_script(LAYOUT)
    assert seen['empty'] == 0 and seen['page'] <= 794
    assert browser.driver.execute_script(OVERLAPS) == []
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

    def shown():
        said, = browser.texts('figure.chart output')
        return said.split(', one contract held')[0]
    chart, = browser.all('figure.chart')
    assert shown() == told(equity.iloc[-1])
    held = json.loads((folder/'metrics.json').read_text())['evidence']['holding_profit']
    assert f'one contract held ${100_000 + held:,.0f} (' in browser.texts('figure.chart output')[0]
    ActionChains(browser.driver).move_to_element(browser.all('.plot.tall')[0]).perform()
    at = [told(row) for _, row in equity.iterrows()].index(shown())
    assert abs(at - len(equity) // 2) <= 1
    browser.driver.execute_script('arguments[0].focus()', chart)
    ActionChains(browser.driver).send_keys(Keys.ARROW_LEFT).perform()
    assert shown() == told(equity.iloc[at - 1])
    assert browser.console() == []


DOTS = """
const box = document.querySelector('.plot.tall').getBoundingClientRect();
const found = [...document.querySelectorAll('.dots')].flatMap(p => [...p.getAttribute('d').matchAll(/M([-\\d.]+) ([-\\d.]+)/g)]);
return found.map(([, x, y]) => [Math.round(box.left + box.width * x / 1000), Math.round(box.top + box.height * y / 100)]);
"""


def test_the_account_is_zoomed(page, charted):
    "A span dragged over is shown larger, every trade in it has a dot on its line, and a click on a dot shows its session."
    from selenium.webdriver import ActionChains, Keys
    browser, equity = page(1400, place=charted), pd.read_csv(charted/'equity.csv', parse_dates=['date'])
    trades = pd.read_csv(charted/'trades.csv', parse_dates=['date'])
    figure, plot = browser.all('figure.chart')[0], browser.all('.plot.tall')[0]
    whole = [p.get_attribute('innerHTML') for p in browser.all('.plot, .times')]
    assert len(browser.driver.execute_script(DOTS)) == len(trades) and figure.get_attribute('data-sessions') == str(len(equity))
    middle = plot.rect['width'] / 2
    drag = ActionChains(browser.driver).move_to_element(plot).click_and_hold().move_by_offset(int(middle) - 2, 0)
    drag.release().perform()
    shown = equity.date[len(equity) // 2 - 1:]
    assert abs(int(figure.get_attribute('data-sessions')) - len(shown)) <= 3
    first = browser.texts('.times i')[0]
    assert abs((pd.Timestamp(first) - shown.iloc[0]).days) < 32  # above 250 sessions a label is a month
    last = equity.date.iloc[-int(figure.get_attribute('data-sessions')):]
    dots = browser.driver.execute_script(DOTS)
    assert len(dots) == trades.date.isin(last).sum() > 0
    lines = browser.driver.execute_script("return [...document.querySelectorAll('.plot path[style]')].map(p => p.getAttribute('d').split('H').length)")
    assert set(lines) == {len(last)}
    numbers = [float(t.strip('$').replace(',', '')) for t in browser.texts('.plot.tall i')]
    own = equity.set_index('date').loc[last.iloc[0]:]
    assert min(numbers) <= own.original_equity.min() and max(numbers) >= own.original_equity.max()
    click = ActionChains(browser.driver)
    click.w3c_actions.pointer_action.move_to_location(*dots[0]).click()
    click.perform()
    browser.wait(lambda: browser.all('tr.on'), 'the session of the trade')
    seen = pd.Timestamp(browser.texts('tr.on td:first-child')[0])
    assert seen in set(trades.date[trades.date.isin(last)])
    for key, count in (('+', len(last) // 2), ('0', len(equity))):
        browser.driver.execute_script('arguments[0].focus()', figure)
        ActionChains(browser.driver).send_keys(key).perform()
        assert abs(int(figure.get_attribute('data-sessions')) - count) <= 3
    without_dots = "return [...document.querySelectorAll('.dots')].forEach(p => p.remove())"
    browser.driver.execute_script(without_dots)
    assert [p.get_attribute('innerHTML') for p in browser.all('.plot, .times')] == [re.sub('<path class="dots.*?</path>', '', w) for w in whole]
    ActionChains(browser.driver).send_keys(Keys.ARROW_LEFT).perform()
    assert browser.console() == []


FIRST_SCREEN = """
const bottom = e => e.getBoundingClientRect().bottom;
return ['.verdict', '.tiles', '.plot.tall'].map(s => bottom(document.querySelector(s)) <= innerHeight)
    .concat([document.querySelectorAll('details[open]').length]);
"""


@pytest.mark.parametrize('width', [420, 1400])
def test_the_first_screen_answers(page, folder, width):
    "Verdict, tiles and account need no scrolling, all else is closed, and the tiles are figures of metrics.json."
    browser = page(width)
    assert browser.driver.execute_script(FIRST_SCREEN) == [True, True, True, 0]
    metrics = json.loads((folder/'metrics.json').read_text())
    own, evidence = metrics['original'], metrics['evidence']
    figures = {key: _format_metric(key, own[key]) for key in ('trades', 'expectancy_r', 'total_profit', 'max_drawdown')}
    figures |= {'p': f"{evidence['p']:.3f}", 'edge_found_in_80%': '–'}  # 19 null markets are too few for error rates
    tiles = browser.driver.execute_script("return [...document.querySelectorAll('.value')].map(e => [e.dataset.figure, e.textContent])")
    assert dict(tiles) == figures and own['trades'] >= 30
    notes = ' '.join(browser.texts('.tiles dd:last-child'))
    assert f"one contract held: {_format_metric('total_profit', evidence['holding_profit'])}" in notes
    as_good = round(evidence['p'] * (evidence['placebos'] + 1)) - 1
    assert f"{as_good} of {evidence['placebos']} null markets" in notes
    said = metrics['verdict']['original']
    shown = ' '.join(browser.texts('.said:first-of-type p')).split()
    assert shown == f"Rule: {said['recommendation']} {said['reasons']}".split()


def test_it_opens_at_once(page):
    "0.4 to 0.9 s on an idle machine; the ceiling is for one that has other work."
    browser = page(1400)
    took = browser.driver.execute_script("return performance.getEntriesByType('navigation')[0].loadEventEnd")
    assert 0 < took < 5000


def as_listed(trades):
    "The texts of the list, from trades.csv."
    def minus(text): return text.replace('-', '−')
    def row(t):
        times = [pd.Timestamp(t[k]).tz_convert('America/New_York') if pd.Timestamp(t[k]).tz else pd.Timestamp(t[k]) for k in ('entry_ts', 'exit_ts')]
        return [t.date[:10], 'buy' if t.side > 0 else 'sell', str(t.contracts), f'{times[0]:%H:%M}', f'{t.entry:,.2f}', f'{times[1]:%H:%M}',
                f'{t.exit:,.2f}', t.exit_reason, f'{t.mae:,.2f}', f'{t.mfe:,.2f}',
                minus(f'${t.net:,.0f}').replace('$−', '−$'), minus(f'{t.r_multiple:+.3f}')]
    return [row(t) for _, t in trades.iterrows()]


ROWS = """
const texts = row => [...row.cells].map(c => c.textContent);
return [...document.querySelectorAll('table.trades')].map(t => [...t.tBodies[0].rows].map(texts));
"""


def test_the_list_is_trades_csv(page, folder):
    "Every trade of the file, in its order; a heading sorts, with the mouse and from the keyboard."
    from selenium.webdriver import Keys
    browser = page(1400)
    browser.driver.execute_script(OPEN)
    trades = pd.read_csv(folder/'trades.csv')
    own = [as_listed(trades[trades.strategy == name]) for name in ('original', 'ml') if (trades.strategy == name).any()]
    shown = browser.driver.execute_script(ROWS)
    assert shown == own
    heads = browser.all('table.trades')[0].find_elements('css selector', 'thead button')
    for column, key in ((11, 'r_multiple'), (9, 'mfe'), (0, 'date')):
        expected = trades[trades.strategy == 'original'].sort_values(key, kind='stable')
        heads[column].click()
        rows = browser.driver.execute_script(ROWS)[0]
        assert [r[column] for r in rows] == [r[column] for r in as_listed(expected)]
    heads[11].send_keys(Keys.ENTER)
    heads[11].send_keys(Keys.ENTER)
    rows = browser.driver.execute_script(ROWS)[0]
    assert [float(r[11].replace('−', '-')) for r in rows] == sorted((float(f'{r:.3f}') for r in trades.r_multiple[trades.strategy == 'original']), reverse=True)
    assert browser.driver.execute_script("return document.querySelector('th[aria-sort]').textContent") == 'R'
    assert browser.console() == []


SLOT = """
const svg = document.querySelector('.slot svg'), box = svg.getBoundingClientRect();
const inside = t => t.getBoundingClientRect().right <= box.right + 1 && t.getBoundingClientRect().left >= box.left - 1;
const texts = [...svg.querySelectorAll('text')];
return {labels: texts.map(t => t.textContent), inside: texts.every(inside), candles: svg.querySelectorAll('rect.rose, rect.fell').length,
        rows: svg.querySelectorAll('rect.inside, rect.outside').length, told: document.querySelector('.slot output').textContent};
"""


@pytest.mark.parametrize('width, scheme', [(400, 'light'), (1400, 'dark')])
def test_a_click_shows_the_session(page, folder, width, scheme):
    "The drawn prices are those of trades.csv, signals.csv and the levels of the session before."
    from selenium.webdriver import Keys
    browser = page(width, scheme)
    browser.driver.execute_script(OPEN)
    trade = pd.read_csv(folder/'trades.csv').iloc[3]
    signals = pd.read_csv(folder/'signals.csv')
    order = signals[(signals.date == trade.date) & (signals.side == trade.side)].iloc[0]
    levels = pd.read_parquet(folder/'levels.parquet')
    before = levels[levels.index < trade.date].iloc[-1]
    button = browser.all('table.trades tbody button')[3]
    button.send_keys(Keys.ENTER)
    seen = browser.driver.execute_script(SLOT)
    prices = {'entry': trade.entry, 'exit': trade.exit, 'stop': order.stop, 'target': order.target,
              'VAL': before.val, 'VPOC': before.vpoc, 'VAH': before.vah}
    assert {f'{name} {price:,.2f}' for name, price in prices.items()} <= set(seen['labels']) and seen['inside']
    assert seen['candles'] > 20 and seen['rows'] > 20
    assert re.fullmatch(r'\d\d:\d\d ET  O [\d,.]+  H [\d,.]+  L [\d,.]+  C [\d,.]+', seen['told'])
    assert button.get_attribute('aria-expanded') == 'true'
    assert browser.driver.execute_script(LAYOUT)['page'] <= width
    button.click()
    assert not browser.all('.slot') and browser.console() == []


@pytest.mark.parametrize('width, scheme', [(400, 'dark'), (1400, 'light')])
def test_a_click_shows_the_session_in_the_chart(page, charted, width, scheme):
    "With the extra, a click on a trade shows its session in the chart, and the chart marks the trade it shows."
    from selenium.webdriver import Keys
    browser = page(width, scheme, place=charted)
    took = browser.driver.execute_script("return performance.getEntriesByType('navigation')[0].loadEventEnd")
    assert took < 5000 and len((charted/'report.html').read_bytes()) < 5e6
    browser.driver.execute_script(OPEN)
    trade = pd.read_csv(charted/'trades.csv').iloc[3]
    browser.all('table.trades tbody button')[3].send_keys(Keys.ENTER)
    browser.wait(lambda: trade.date[:10] in browser.texts('tr.on td:first-child'), 'the session of the trade')
    browser.wait(lambda: browser.all('.sessions-chart canvas'), 'the chart')
    words, = browser.texts('.vc-words')
    assert f'{trade.entry:,.2f}' in words and f'{trade.exit:,.2f}' in words
    assert browser.driver.execute_script(LAYOUT)['page'] <= width and not browser.all('.slot')
    assert browser.console() == [] and browser.hosts() == set()  # the library names its maker's address, and asks nothing of it


def test_the_chart_is_not_printed(page, charted):
    browser = page(794, 'dark', 'print', charted)
    height = "return document.querySelector(arguments[0]).getBoundingClientRect().height"
    assert browser.driver.execute_script(height, '.sessions-chart') == 0
    assert browser.driver.execute_script(height, 'table.trades') > 300
    assert browser.driver.execute_script(OVERLAPS) == []


def test_terms_have_meanings(page):
    "A click, or the Enter key, on a term shows its entry; Escape closes it; both fit a phone."
    from selenium.webdriver import ActionChains, Keys
    browser = page(420)
    terms = browser.all('.tiles button.term')
    assert [t.text for t in terms] == ['Trades', 'Expectancy', 'Profit', 'Drawdown', 'p against nulls', 'Detectable edge']
    terms[5].click()
    entry, = browser.all('.meaning:popover-open')
    assert 'smallest true edge' in entry.text and entry.rect['x'] >= 0 and entry.rect['x'] + entry.rect['width'] <= 420 and entry.rect['width'] > 250
    ActionChains(browser.driver).send_keys(Keys.ESCAPE).perform()
    assert not browser.all('.meaning:popover-open')
    terms[1].send_keys(Keys.ENTER)
    assert browser.all('.meaning:popover-open')


TORN = """
const torn = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const node = walk.currentNode;
  if (node.parentElement.closest('script, style, pre, .meaning')) continue;
  for (const found of node.data.matchAll(/[−-](?=[$\\d])[$\\d.,]+/g)) {
    const before = node.data[found.index - 1] || ' ', range = document.createRange();
    if (found[0][0] == '-') { if (!/[\\w–-]/.test(before)) torn.push('hyphen: ' + node.data); continue; }
    range.setStart(node, found.index);
    range.setEnd(node, found.index + found[0].length);
    const tops = new Set([...range.getClientRects()].map(r => Math.round(r.top)));
    if (tops.size > 1) torn.push('torn: ' + node.data);
  }
}
return torn;
"""


@pytest.mark.parametrize('width', [320, 360, 420, 700, 1400])
def test_minus_signs_stay_with_their_numbers(page, width):
    browser = page(width)
    browser.driver.execute_script(OPEN)
    assert browser.driver.execute_script(TORN) == []


def test_losses_are_red(page):
    "In both schemes, and only losses."
    script = "return [...document.querySelectorAll('.loss:not(.said)')].map(e => [e.textContent, getComputedStyle(e).color])"
    for scheme in ('light', 'dark'):
        seen = page(1400, scheme).driver.execute_script(script)
        assert len(seen) > 20 and all(text.startswith('−') for text, _ in seen)
        for _, colour in seen:
            red, green, blue = map(int, re.findall(r'\d+', colour)[:3])
            assert red > 190 and red > 1.5 * max(green, blue)


def test_the_page_has_no_address(folder):
    text = (folder/'report.html').read_text()
    assert not re.search(r'https?:|//\w+\.|<link|<iframe|@import|url\(', text) and len(text.encode()) < 5e6


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
