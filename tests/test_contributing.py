"""The worked examples of CONTRIBUTING.md run as they are written, one after the other, and stay short."""
import re
from pathlib import Path

root = Path(__file__).parents[1]
EXAMPLES = re.findall(r'^```python\n(.*?)^```', (root/'.github/CONTRIBUTING.md').read_text(encoding='utf-8'), re.M | re.S)


def test_there_are_four_short_examples():
    assert len(EXAMPLES) == 4
    assert all(len(code.splitlines()) <= 30 for code in EXAMPLES)


def test_the_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from vpoc_backtest.layouts import LAYOUTS
    before, names = dict(LAYOUTS), {}
    try:
        for code in EXAMPLES: exec(compile(code, 'CONTRIBUTING.md', 'exec'), names)
    finally:
        LAYOUTS.clear()
        LAYOUTS.update(before)
    assert names['leaks'].empty and len(names['result'].trades)
    own = names['tried'].table.loc[names['mine'].name]
    assert 0 < own.frequency < 1 and own.mirror_p >= .05 - 1e-9 and len(names['tried'].table) > 20
    assert names['levels'].vpoc.gt(0).all()
