// Questions to the server beside the page.

export async function ask(name, parameters = {}, signal = undefined) {
  const query = new URLSearchParams();
  for (const [key, value] of Object.entries(parameters)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== null && one !== undefined && one !== '') query.append(key, one);
    }
  }
  const response = await fetch(`/api/${name}?${query}`, { signal });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error ?? response.statusText);
  return answer;
}

export const rawAddress = ([run, stage, row]) => '/api/raw?' + new URLSearchParams({ run, stage, row });
