// An EventSource that says what happens to it, and does nothing else: what comes back is the browser's own doing.

export function listen(url, say) {
  const source = new EventSource(url);
  source.onopen = () => say({ event: 'open' });
  source.onerror = () => say({ event: 'error', given_up: source.readyState === EventSource.CLOSED });
  source.onmessage = ({ lastEventId, data }) => say({ event: 'publication', id: lastEventId, data });
  source.addEventListener('gap', ({ lastEventId, data }) => say({ event: 'gap', id: lastEventId, ...JSON.parse(data) }));
}
