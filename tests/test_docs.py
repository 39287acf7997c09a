"""The documentation site: built once from the saved notebooks, every link followed, and looked at in a browser."""
import base64
import functools
import http.server
import itertools
import json
import re
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import urlopen

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
    done = subprocess.run([sys.executable, root/'.ci/docs.py'], cwd=root, capture_output=True, text=True, timeout=300)
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


def test_formulas_are_drawn_without_a_script(site):
    text = (site/'stats.html').read_text(encoding='utf-8')
    assert '<math' in text and 'katex' not in text.lower()


class Browser:
    "Chromium without a window, spoken to over its own protocol; remembers errors and every request."
    def __init__(self, binary, profile):
        self.process = subprocess.Popen([binary, '--headless=new', '--no-sandbox', '--disable-gpu', '--disable-background-networking', '--no-first-run',
                                         '--remote-debugging-port=0', '--remote-allow-origins=*', f'--user-data-dir={profile}', 'about:blank'],
                                        stderr=subprocess.PIPE, text=True)
        address = next(m[1] for line in self.process.stderr if (m := re.search(r'ws://([^/]+)/', line)))
        threading.Thread(target=lambda: self.process.stderr.read(), daemon=True).start()
        tab = next(t for t in json.load(urlopen(f'http://{address}/json')) if t['type'] == 'page')
        self.socket = pytest.importorskip('websocket').create_connection(tab['webSocketDebuggerUrl'], timeout=60)
        self.numbers, self.errors, self.requests, self.loaded = itertools.count(1), [], [], False
        for domain in ('Page', 'Network', 'Runtime', 'Log'): self(f'{domain}.enable')

    def __call__(self, method, **params):
        number = next(self.numbers)
        self.socket.send(json.dumps({'id': number, 'method': method, 'params': params}))
        while (reply := self.hear()).get('id') != number: pass
        assert 'error' not in reply, reply
        return reply['result']

    def hear(self):
        said = json.loads(self.socket.recv())
        method, params = said.get('method'), said.get('params', {})
        if method == 'Network.requestWillBeSent': self.requests.append(params['request']['url'])
        if method == 'Page.loadEventFired': self.loaded = True
        if method == 'Runtime.exceptionThrown': self.errors.append(params['exceptionDetails']['text'])
        if method == 'Log.entryAdded' and params['entry']['level'] == 'error': self.errors.append(params['entry']['text'] + params['entry'].get('url', ''))
        if method == 'Runtime.consoleAPICalled' and params['type'] in ('error', 'assert'): self.errors.append(str(params['args']))
        return said

    def open(self, url, width=1400, height=1000, dark=False):
        self('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=False)
        self('Emulation.setEmulatedMedia', features=[{'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'}])
        self.loaded = False
        self('Page.navigate', url=url)
        while not self.loaded: self.hear()

    def evaluate(self, expression):
        return self('Runtime.evaluate', expression=expression, awaitPromise=True, returnByValue=True)['result'].get('value')

    def picture(self, path):
        path.write_bytes(base64.b64decode(self('Page.captureScreenshot')['data']))


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    binary = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
    if not binary: pytest.skip('no Chromium on this machine: install the package chromium to look at the site in a browser')
    browser = Browser(binary, tmp_path_factory.mktemp('chromium'))
    yield browser
    browser.process.terminate()
    browser.process.wait(30)


@pytest.fixture(scope='module')
def address(site):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()


@pytest.mark.parametrize('width, dark', [(400, False), (1400, False), (1400, True)])
def test_pages_in_a_browser(browser, address, site, tmp_path, width, dark):
    for name in ('index', 'vpoc', 'stats', 'backtest', 'tutorials/can_you_trust_it'):
        browser.errors, browser.requests = [], []
        browser.open(f'{address}{name}.html', width, dark=dark)
        assert not browser.errors
        assert not [url for url in browser.requests if not url.startswith((address, 'data:'))]
        assert browser.evaluate('document.documentElement.scrollWidth') <= width, f'{name} is wider than {width} px'
        assert browser.evaluate('[...document.images].every(image => image.complete && image.naturalWidth > 0)')
        light = browser.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).every(x => x > 128)")
        assert light != dark
        browser.picture(tmp_path/f"{name.replace('/', '_')}_{width}{'_dark' * dark}.png")


def test_search_in_a_browser(browser, address):
    browser.errors = []
    browser.open(f'{address}index.html')
    browser.evaluate("""new Promise(found => {
        const box = [...document.querySelectorAll('.smalldocs-search input')].find(input => input.offsetParent);
        box.focus(); box.value = 'value area'; box.dispatchEvent(new Event('input', {bubbles: true}));
        let tries = 0; const wait = setInterval(() => (document.querySelector('a.search-result') || ++tries > 100) && found(clearInterval(wait)), 50);
    })""")
    assert 'vpoc.html' in ' '.join(browser.evaluate("[...document.querySelectorAll('a.search-result')].map(a => a.href)"))
    assert not browser.errors


def test_quarto_reads_the_same_settings():
    settings = yaml.safe_load((nbs/'_quarto.yml').read_text())
    assert settings['project']['type'] == 'website' and 'sidebar.yml' in settings['metadata-files']
