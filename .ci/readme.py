"""Write README.md from nbs/index.ipynb, saved outputs and all; pictures go to nbs/images/."""
import re
from pathlib import Path
from textwrap import fill

import nbformat
from nbconvert import MarkdownExporter

root = Path(__file__).parents[1]
notebook = nbformat.read(root/'nbs/index.ipynb', as_version=4)
notebook.metadata['language_info'] = {'name': 'python'}
notebook.cells = [c for c in notebook.cells if not re.match(r'#\|\s*hide\b', c.source)]
for cell in notebook.cells:
    if re.match(r'#\|\s*echo:\s*false', cell.source): cell.source = ''
    for output in cell.get('outputs', []):
        output.get('data', {}).pop('text/html', None)
        if 'text' in output: output.text = '\n'.join(fill(line, 105) if len(line) > 105 else line for line in output.text.split('\n'))

text, resources = MarkdownExporter().from_notebook_node(notebook, {'output_files_dir': 'nbs/images', 'unique_key': 'readme'})
text = re.sub(r'```python\s*```\n', '', text)                                      # cells whose code is not shown
text = re.sub(r'\n *\n!\[png\]\((.*?)\)\n *\n', r'\n\n![Equity of the published procedure and of the causal rules](\1)\n\n', text)
text = text.replace('](images/', '](nbs/images/')
text = re.sub(r'\]\(\.\./', '](', re.sub(r'\]\(([\w/]+\.ipynb)', r'](nbs/\1', text))  # the notebook lies one folder down
text = re.sub(r'(?<=\n)[ \t]+\n', '\n', text)
(root/'README.md').write_text(re.sub(r'\n{3,}', '\n\n', text).strip() + '\n', encoding='utf-8')
for name, data in resources['outputs'].items():
    (root/name).parent.mkdir(exist_ok=True)
    (root/name).write_bytes(data)
