"""What tests share: which of them need the real data, and a real browser for everything that is looked at (Debian's Chromium, without a
window, that may talk to this machine only)."""
import inspect
import json
import shutil
from urllib.parse import urlsplit

import pytest

FLAGS = ('--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
         '--disable-component-update', '--disable-sync', '--window-size=1400,1100', '--hide-scrollbars')


def pytest_configure(config): config.addinivalue_line('markers', 'real_data: reads ../shared; added here to every test that names it')


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    "`pytest -m real_data` runs the tests that are skipped, or less thorough, where there is no `../shared`."
    for item in items:
        if 'shared' in inspect.getsource(item.function): item.add_marker('real_data')


class Browser:
    "What a test needs of the driver (`driver`, selenium's own, does the rest)."
    def __init__(self, driver): self.driver = driver

    def open(self, url, width=1400, height=1100):
        self.driver.get('about:blank')
        self.console(), self.hosts()  # what came before belongs to another page, which says no more now
        self.driver.set_window_size(width, height)
        self.driver.get(url)

    def wait(self, condition, what, seconds=60):
        "The first true answer of `condition`, which is asked again and again; fails with what was waited for."
        from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
        from selenium.webdriver.support.ui import WebDriverWait
        try: return WebDriverWait(self.driver, seconds, .1, [StaleElementReferenceException]).until(lambda _: condition())
        except TimeoutException:
            page = self.driver.execute_script('return document.body.innerText')[-1500:]
            raise AssertionError(f'waited {seconds} s in vain for {what}; the console says {self.console() or "nothing"}; the page ends with {page!r}') from None

    def all(self, css): return self.driver.find_elements('css selector', css)

    def texts(self, css):
        "The texts of all elements, read at one moment."
        return self.driver.execute_script('return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)', css)

    def console(self):
        "Errors on the console since the last look."
        return [entry['message'] for entry in self.driver.get_log('browser') if entry['level'] == 'SEVERE']

    def hosts(self):
        "The hosts that something was asked of since the last look."
        messages = [json.loads(entry['message'])['message'] for entry in self.driver.get_log('performance')]
        urls = [m['params']['request']['url'] for m in messages if m['method'] == 'Network.requestWillBeSent']
        return {urlsplit(url).hostname for url in urls if url.startswith(('http', 'ws'))}


@pytest.fixture(scope='session')
def browser(tmp_path_factory):
    "A `Browser`; skips, and says why, where there is none."
    webdriver = pytest.importorskip('selenium.webdriver', reason='no selenium: pip install -c constraints.txt -e ".[dev]"')
    chromium, chromedriver = shutil.which('chromium'), shutil.which('chromedriver')
    if not (chromium and chromedriver): pytest.skip('no browser: apt-get install chromium chromium-driver')
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in FLAGS + (f'--user-data-dir={tmp_path_factory.mktemp("chromium")}',): options.add_argument(flag)
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL', 'performance': 'ALL'})
    driver = webdriver.Chrome(options, webdriver.ChromeService(chromedriver))
    yield Browser(driver)
    driver.quit()
