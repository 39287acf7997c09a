// Open or close every section with one button, and open them all while the page is printed.
{
  const sections = [...document.querySelectorAll('details')];
  const button = document.querySelector('.all button');
  const label = () => { button.textContent = sections.every(s => s.open) ? 'Close all' : 'Open all'; };
  button.hidden = false;
  button.addEventListener('click', () => {
    const open = !sections.every(s => s.open);
    for (const s of sections) s.open = open;
  });
  for (const s of sections) s.addEventListener('toggle', label);

  let closed = [];
  addEventListener('beforeprint', () => {
    closed = sections.filter(s => !s.open);
    for (const s of closed) s.open = true;
  });
  addEventListener('afterprint', () => { for (const s of closed) s.open = false; });
}
