"""The documentation site: built once from the saved notebooks, every link followed, and looked at in a browser."""
import functools
import http.server
import json
import re
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

pytest.importorskip('smalldocs', reason='the extra docs is not installed')
pytest.importorskip('latex2mathml', reason='the extra docs is not installed')
root = Path(__file__).parents[1]
nbs = root/'nbs'
source = 'https://github.com/vpoc-backtest/vpoc_backtest/blob/main/'
notebooks = [p for p in nbs.rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts]


class Page(HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.path, self.links, self.ids, self.fetched = path, [], set(), []
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if 'id' in attrs: self.ids.add(attrs['id'])
        if tag == 'a' and attrs.get('href'): self.links.append(attrs['href'])
        if tag in ('script', 'img', 'iframe', 'source') and 'src' in attrs: self.fetched.append(attrs['src'])
        if tag == 'link' and attrs.get('rel') != 'canonical': self.fetched.append(attrs['href'])


@pytest.fixture(scope='module')
def site():
    command = [sys.executable, '-W', 'error::UserWarning', root/'.ci/docs.py']  # a cell that mixes imports with code only warns
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return root/'_docs'


@pytest.fixture(scope='module')
def pages(site):
    return {path: Page(path) for path in site.rglob('*.html')}


def test_every_notebook_has_a_page_and_a_place_in_the_sidebar_and_the_front_page(pages, site):
    assert len(pages) == len(notebooks)
    listed = re.findall(r'- (\S+\.ipynb)', (nbs/'sidebar.yml').read_text())
    names = {p.relative_to(nbs).as_posix() for p in notebooks}
    assert set(listed) == names and len(listed) == len(set(listed))
    front = ''.join(''.join(cell['source']) for cell in json.loads((nbs/'index.ipynb').read_text())['cells'])
    assert {name for name in names if f']({name})' not in front} <= {'index.ipynb'}


def test_every_link_leads_somewhere(pages, site):
    dead, followed = [], 0
    for path, page in pages.items():
        for link in page.links + page.fetched:
            parts = urlsplit(link)
            if parts.scheme in ('data', 'mailto', 'javascript'): continue
            if link.startswith(source):                                       # source of the repository: the file, and the line in it
                file, line = root/unquote(parts.path.split('/blob/main/')[1]), int(parts.fragment.removeprefix('L') or 1)
                followed += 1
                if not file.exists() or len(file.read_text(encoding='utf-8').splitlines()) < line: dead.append((path.name, link))
            elif not parts.scheme:
                target = (path.parent/unquote(parts.path)).resolve() if parts.path else path
                followed += 1
                if not target.exists(): dead.append((path.name, link))
                elif parts.fragment and target.suffix == '.html' and unquote(parts.fragment) not in pages[target].ids: dead.append((path.name, link))
    assert not dead
    assert followed > 1_000


def test_readme_and_contributing_link_to_what_is_there():
    for path in (root/'README.md', *root.glob('.github/*.md'), root/'DATA/README.md'):
        text = path.read_text(encoding='utf-8')
        for link in re.findall(r'\]\((?!https?:)([^)#]+)', text): assert (path.parent/link).exists(), f'{path.name}: {link}'


def test_nothing_is_asked_of_another_machine(pages):
    assert not [(path.name, url) for path, page in pages.items() for url in page.fetched if urlsplit(url).netloc]


def test_parameters_stand_in_tables_with_their_comments(site):
    def table(page, name): return re.search(rf'data-anchor-id="{name}".*?(<table.*?</table>)', (site/page).read_text(encoding='utf-8'), re.S)[1]
    assert re.search(r'pct\s+float\s+0\.7\s+\w+', re.sub(r'<[^>]+>', ' ', table('vpoc.html', 'session_levels')))
    for field in ('commission_per_trade', 'slippage_ticks', 'limit_through'): assert f'<code>{field}</code>' in table('backtest.html', 'backtestconfig')
    entries = sum(len(re.findall(r'<th[^>]*>type</th>', p.read_text(encoding='utf-8'))) for p in site.glob('*.html'))
    assert entries > 100


def test_search_finds_the_value_area(site):
    found = [entry for entry in json.loads((site/'search.json').read_text(encoding='utf-8')) if 'value area' in entry['text'].lower()]
    assert {'vpoc.html', 'index.html'} <= {entry['href'].split('#')[0] for entry in found}


def test_the_index_of_names_leads_to_every_entry(pages, site):
    index = pages[site/'names.html']
    outputs = [o for cell in json.loads((nbs/'names.ipynb').read_text())['cells'] for o in cell.get('outputs', [])]
    callables = re.findall(r'^\| `(\w+)` \| (?!a `)', ''.join(''.join(o['data']['text/markdown']) for o in outputs), re.M)
    entries = {link.split('#')[1] for link in index.links if '.html#' in link}
    assert len(callables) > 100 and {name.lower() for name in callables} <= entries
    assert '](' not in re.sub(r'<[^>]+>', '', index.path.read_text(encoding='utf-8')), 'a link inside a link'


def test_formulas_are_drawn_without_a_script(site):
    text = (site/'stats.html').read_text(encoding='utf-8')
    assert '<math' in text and 'katex' not in text.lower()


@pytest.fixture(scope='module')
def address(site):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()


@pytest.mark.parametrize('width, dark', [(400, False), (1400, False), (1400, True)])
def test_pages_in_a_browser(browser, address, tmp_path, width, dark):
    ask = browser.driver.execute_cdp_cmd
    ask('Emulation.setEmulatedMedia', {'features': [{'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'}]})
    ask('Emulation.setDeviceMetricsOverride', {'width': width, 'height': 1100, 'deviceScaleFactor': 1, 'mobile': False})  # a window is never that narrow
    try:
        for name in ('index', 'vpoc', 'stats', 'backtest', 'explore', 'tutorials/write_your_own_rule'):
            browser.open(f'{address}{name}.html')
            assert not browser.console()
            assert browser.hosts() == {'127.0.0.1'}
            look = browser.driver.execute_script
            assert look('return document.documentElement.scrollWidth') <= width, f'{name} is wider than {width} px'
            assert look('return [...document.images].every(image => image.complete && image.naturalWidth > 0)')
            assert look('return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).every(x => x > 128)') != dark
            browser.driver.save_screenshot(tmp_path/f"{name.replace('/', '_')}.png")
    finally:
        ask('Emulation.clearDeviceMetricsOverride', {})
        ask('Emulation.setEmulatedMedia', {'features': []})


TASKS = {'read a CSV': 'read-a-csv', 'load csv': 'read-a-csv', 'change the stop': 'change-the-stop', 'stop loss': 'change-the-stop',
         'compare two settings': 'compare-two-settings', 'value area 80%': 'value-area-of-80', "tomorrow's order": 'tomorrows-order',
         'costs': 'set-costs-slippage-and-account-size', 'slippage': 'set-costs-slippage-and-account-size', 'TPO': 'market-profile-in-letters',
         'is it luck': 'is-it-luck', 'my own trades': 'are-my-own-trades-worth-anything', 'profit factor': 'compare-two-settings',
         'load text file export': 'read-a-csv', 'profile of a time range': 'profile-of-a-range-of-hours', 'stop twice as far': 'move-every-stop'}
NAMES = {'session_levels': 'vpoc', 'read_bars': 'readers', 'run_backtest': 'backtest', 'make_signals': 'signals', 'SignalRules': 'signals',
         'placebo_test': 'evidence', 'verdict': 'verdict', 'explore': 'explore', 'nodes': 'vpoc', 'footprint': 'order_flow'}


def search(browser, words):
    "Type words into the search box; the first result, once there is one."
    browser.driver.execute_script("""document.querySelector('.smalldocs-search-results').innerHTML = ''
        const box = document.querySelector('.smalldocs-search input')
        box.value = arguments[0]
        box.dispatchEvent(new Event('input'))""", words)
    return browser.wait(lambda: next(iter(browser.all('a.search-result')), None), f'results for {words}')


def test_search_in_a_browser(browser, address):
    "The words of a task lead to its place in the cookbook, a name to its entry."
    browser.open(f'{address}index.html')
    first = {words: search(browser, words).get_attribute('href').removeprefix(address) for words in [*TASKS, *NAMES]}
    assert {words: first[words] for words in TASKS} == {words: f'tutorials/cookbook.html#{place}' for words, place in TASKS.items()}
    entries = {name: re.sub(r'-\d+$', '', first[name]) for name in NAMES}  # a heading of the same name comes first: then it is #name-1
    assert entries == {name: f'{page}.html#{name.lower()}' for name, page in NAMES.items()}
    assert not browser.console()


CONTRAST = """const numbers = colour => { const n = colour.match(/[\\d.]+/g).map(Number); return n.length > 3 ? n : [...n, 1] }
const over = (a, b) => [0, 1, 2].map(i => a[i] * a[3] + b[i] * (1 - a[3])).concat(1)
const background = e => e ? over(numbers(getComputedStyle(e).backgroundColor), background(e.parentElement)) : [255, 255, 255, 1]
const linear = v => v <= 10 ? v / 255 / 12.92 : ((v / 255 + .055) / 1.055) ** 2.4
const light = colour => .2126 * linear(colour[0]) + .7152 * linear(colour[1]) + .0722 * linear(colour[2])
return [...document.querySelectorAll(arguments[0])].map(e => {
    const under = background(e)
    const [more, less] = [light(under), light(over(numbers(getComputedStyle(e).color), under))].sort((a, b) => b - a)
    return (more + .05) / (less + .05)
})"""


@pytest.mark.parametrize('width, dark', [(420, False), (420, True), (1400, False), (1400, True)])
def test_results_of_a_search_can_be_read(browser, address, width, dark):
    ask = browser.driver.execute_cdp_cmd
    ask('Emulation.setEmulatedMedia', {'features': [{'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'}]})
    ask('Emulation.setDeviceMetricsOverride', {'width': width, 'height': 900, 'deviceScaleFactor': 1, 'mobile': False})
    try:
        browser.open(f'{address}index.html')
        search(browser, 'value area')
        for part in ('title', 'section', 'text', 'text mark'):
            ratios = browser.driver.execute_script(CONTRAST, f'.search-result-{part}')
            assert len(ratios) > 3 and min(ratios) >= 4.5, part
    finally:
        ask('Emulation.clearDeviceMetricsOverride', {})
        ask('Emulation.setEmulatedMedia', {'features': []})


def test_quarto_reads_the_same_settings():
    settings = yaml.safe_load((nbs/'_quarto.yml').read_text())
    assert settings['project']['type'] == 'website' and 'sidebar.yml' in settings['metadata-files']
