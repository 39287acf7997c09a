"""Print a regular expression for the names of the notebooks that read the real data in ../shared, where it is."""
import json
import re
from pathlib import Path

nbs = Path(__file__).parents[1]/'nbs'


def uses_shared(path):
    code = '\n'.join(''.join(c['source']) for c in json.loads(path.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code')
    return re.search(r"shared\.exists|shared/['f]|/shared/data/\w", code) is not None


if __name__ == '__main__':
    names = sorted(path.stem for path in nbs.rglob('*.ipynb') if '.ipynb_checkpoints' not in path.parts and uses_shared(path))
    print(f"^({'|'.join(map(re.escape, names))})[.]ipynb$")
