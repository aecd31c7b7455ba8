// Draws /openapi.json with openapi-explorer, in the colours that the reader's system asks for.

const LIGHT = {
  'bg-color': '#fbfaf8', 'text-color': '#1c1d20', 'header-color': '#1c1d20', 'primary-color': '#0b57a4',
  'secondary-color': '#0b57a4', 'nav-bg-color': '#efede8', 'nav-text-color': '#1c1d20',
  'nav-hover-bg-color': '#e0ddd6', 'nav-hover-text-color': '#0b57a4',
};
const DARK = {
  'bg-color': '#17181a', 'text-color': '#e8e6e3', 'header-color': '#e8e6e3', 'primary-color': '#8ab8ee',
  'secondary-color': '#8ab8ee', 'nav-bg-color': '#232528', 'nav-text-color': '#e8e6e3',
  'nav-hover-bg-color': '#2e3135', 'nav-hover-text-color': '#8ab8ee',
};

const reference = document.getElementById('reference');
const message = document.getElementById('message');
const prefersDark = window.matchMedia('(prefers-color-scheme: dark)');

function applyColours() {
  for (const [name, value] of Object.entries(prefersDark.matches ? DARK : LIGHT)) reference.setAttribute(name, value);
}

// The page may be open under another address than the public one, and may call only the one that it came from.
function useThisServer(document) {
  const publicUrl = document.servers[0].url;
  const here = new URL('.', window.location.href).href.replace(/\/$/, '');
  document.servers = [{ url: here }];
  for (const operation of Object.values(document.paths).flatMap((methods) => Object.values(methods))) {
    // The component knows the older name, and takes away the indentation that all lines after the first have.
    operation['x-code-samples'] = operation['x-codeSamples'].map(({ source, ...sample }) => ({
      ...sample,
      source: `${source.replaceAll(publicUrl, here).replaceAll(new URL(publicUrl).host, new URL(here).host)}\n`,
    }));
    delete operation['x-codeSamples'];
  }
  return document;
}

async function load() {
  const response = await fetch('openapi.json');
  if (!response.ok) throw new Error(`openapi.json: ${response.status}`);
  await customElements.whenDefined('openapi-explorer');
  await reference.loadSpec(useThisServer(await response.json()));
  reference.hidden = false;
  message.hidden = true;
}

applyColours();
prefersDark.addEventListener('change', applyColours);
load().catch((error) => {
  message.textContent = `The reference cannot be shown (${error.message}). Load the page again in a moment.`;
});
