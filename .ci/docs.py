"""Build the documentation site in _docs/ from the notebooks as they are saved: nothing is executed, nothing fetched, quarto not needed.

nbdev makes the pages (`proc_nbs`), smalldocs lays them out by the same nbs/_quarto.yml that quarto reads. Mended on the way: parameters
stand in tables, pages have the names that nbdev links to, those links lead to the site itself, formulas are MathML, which
browsers draw without a script from elsewhere, and search finds a heading by other words too: those in `<!-- also: a, b -->` below it.
"""
import html
import inspect
import json
import re
import sys
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from shutil import rmtree
from textwrap import fill

import nbdev.showdoc
from fastcore.docments import docments
from latex2mathml.converter import convert
from nbdev.config import get_config
from nbdev.serve import proc_nbs
from smalldocs import config, site

from vpoc_backtest import _modidx

UNREAD = re.compile(r'output-file is not read|format commonmark|keep-md')  # these are for quarto, or served by Site itself


ALSO = re.compile(r'^#+ (.+)\n+<!-- also: (.+?) -->', re.M)
# Results of search hang on the bar above the page, which is dark in both themes: their greys are to be those of a dark page. How a
# function is called stands in an output of its cell, and would have no margin.
STYLES = '''
.smalldocs-search-results { --sd-muted: var(--bs-secondary-color); }
.cell-output .code-copy-outer-scaffold pre.sourceCode { padding: .75rem 1rem; }
'''

MODULES = set(_modidx.d['syms'])


# The engine looks for a phrase as it was typed. Where no page holds it, each of its words is looked for, and a page counts by all it holds.
WORD_BY_WORD = """
window.Fuse = class extends window.Fuse {
  search(phrase, how) {
    const found = super.search(phrase, how);
    if (found.length) return found;
    const worth = new Map();
    for (const word of phrase.split(/\\s+/).filter(word => word.length > 2)) {
      for (const hit of super.search(word)) worth.set(hit.item, (worth.get(hit.item) ?? 0) + 1 - hit.score);
    }
    const best = [...worth].sort((a, b) => b[1] - a[1]).slice(0, how?.limit ?? 20);
    return best.map(([item]) => ({item}));
  }
};
"""


class Said(str): __repr__ = str.__str__


def short(value):
    "A type or a default as one would say it: a contract by its symbol, settings by their class."
    if value in (None, inspect._empty): return '' if value is inspect._empty else 'None'
    if isinstance(value, str): return value
    if is_dataclass(value) and not isinstance(value, type): return getattr(value, 'symbol', f'{type(value).__name__}()')
    return re.sub(r'\b[a-z_]+\.|<locals>\.', '', getattr(value, '__name__', None) or str(value))


def exported(sym):
    "A class as the package has it: of a class defined in a cell no source can be read, and so no comments."
    for module, names in _modidx.d['syms'].items():
        if f'{module}.{sym.__name__}' in names and isinstance(sym, type): return getattr(import_module(module), sym.__name__)
    return sym


def cell(text, code='`'):
    text = str(text or '').strip().replace('|', r'\|').replace('\n', ' ')
    return f'{code}{text}{code}' if text else ''


class Entry(nbdev.showdoc.BasicMarkdownRenderer):
    "An entry of the API: how it is called, what it does, and its parameters as a table."
    def _repr_markdown_(self):
        about = docments(exported(self.sym), full=True)
        returns = about.pop('return', None)
        about.pop('self', None)
        if not any(p.docment for p in about.values()): return super()._repr_markdown_()
        defaults = {name: short(repr(p.default) if isinstance(p.default, str) else p.default) for name, p in about.items()}
        rows = [(cell(name), cell(short(p.anno)), cell(defaults[name]), cell(p.docment, '')) for name, p in about.items()]
        if returns and returns.docment: rows.append(('returns', cell(short(returns.anno)), '', cell(returns.docment, '')))
        call = inspect.Signature([inspect.Parameter(name, p.kind, default=Said(defaults[name]) if defaults[name] else p.default) for name, p in about.items()])
        code = fill(f'{self.nm}{call}', 88, subsequent_indent=' ' * (len(self.nm) + 1), break_long_words=False, break_on_hyphens=False)
        table = '\n'.join('| ' + ' | '.join(row) + ' |' for row in [('', 'type', 'default', ''), ['---'] * 4, *rows])
        return f"{super()._repr_markdown_().split('```')[0]}```python\n{code}\n```\n\n{self.docs}\n\n{table}"


nbdev.showdoc.BasicMarkdownRenderer = Entry  # here and not in main: proc_nbs starts processes, and each of them imports this file


def has_entry(page_name, name):
    "Whether a page of the API describes a name: what is not in `__all__` has no entry."
    module = f"vpoc_backtest.{page_name.removesuffix('.html')}"
    return module in MODULES and name in {n.lower() for n in import_module(module).__all__}


class Site(site.Site):
    def read(self, src):
        page = super().read(src)
        page.out = src.with_name(page.front.get('output-file', page.out.name))
        return page

    def find_page(self, target):
        return super().find_page(target) or next((page for page in self.pages.values() if page.out == target), None)

    def resolve(self, href, page, record=True):
        cfg = get_config()
        if href.startswith(home := f'{cfg.doc_host}{cfg.doc_baseurl}/'):
            page_name, _, name = href.removeprefix(home).partition('#')
            name = name.split('.')[0]                                          # methods have no entry of their own
            href = f'/{page_name}#{name}' if has_entry(page_name, name) else f'/{page_name}'
        up = re.match(r'(\.\./)+', href)
        if up and page and up[0].count('../') == len(page.src.parts):
            return f'{cfg.git_url}/blob/{cfg.branch}/{href[up.end():]}'        # files of the repository that are no pages
        return super().resolve(href, page, record)

    def render_page(self, page):
        super().render_page(page)
        page.html = re.sub(r'(?<=">)\\[(\[](.*?)\\([)\]])(?=</span>)', mathml, page.html, flags=re.S)
        page.env['math'] = False                                               # or the page would ask a CDN for KaTeX

    def write_search(self):
        "Let search find headings by other words, and constants by their names."
        super().write_search()
        file = self.out/'search.json'
        found = json.loads(file.read_text(encoding='utf-8').replace('’', "'"))  # as it is typed
        more = [entry for page in self.pages.values() for entry in [*other_words(page, found), *constants(page)]]
        file.write_text(json.dumps(found + more, ensure_ascii=False), encoding='utf-8')


def found_as(href, page, section, text=''): return dict(objectID=href, href=href, title=page.title, section=section, text=text)


def other_words(page, found):
    "Entries of search for the words that are noted below the headings of a page."
    places = {entry['section']: entry['href'] for entry in found if entry['href'].startswith(f'{page.out}#')}
    return [found_as(places[heading], page, words) for heading, also in ALSO.findall(page.body) for words in also.split(', ')]


def constants(page):
    "Entries of search for the public names of a page that are neither functions nor classes: nbdev makes none."
    if (name := f'vpoc_backtest.{page.out.stem}') not in MODULES or len(page.out.parts) > 1: return []
    things = {n: getattr(import_module(name), n) for n in import_module(name).__all__}
    return [found_as(str(page.out), page, n, f'a {type(thing).__name__}') for n, thing in things.items() if not callable(thing)]


def mathml(formula): return convert(html.unescape(formula[1]), display='inline' if formula[2] == ')' else 'block')


def main():
    root = get_config().config_path
    rmtree(root/'_proc', ignore_errors=True)                                   # or pages of notebooks that are gone would stay
    pages = Site(config.load(Path(proc_nbs())), quiet=True)
    pages.out = root/'_docs'
    n = pages.build()
    for theme in (pages.out/'site_libs/themes').glob('*.css'):                 # themes ask Google for a font; the reader's own will do
        theme.write_text(re.sub(r'@import url\("?https?:.*?\);?', '', theme.read_text(encoding='utf-8'), flags=re.S), encoding='utf-8')
    with (pages.out/'styles.css').open('a', encoding='utf-8') as styles: styles.write(STYLES)
    with next(pages.out.rglob('fuse*.js')).open('a', encoding='utf-8') as engine: engine.write(WORD_BY_WORD)
    if wrong := [w for w in pages.warnings if not UNREAD.search(w)]: sys.exit('\n'.join(wrong))
    print(f'{n} pages in _docs/. To read them, with search: python -m http.server --directory _docs')


if __name__ == '__main__': main()
