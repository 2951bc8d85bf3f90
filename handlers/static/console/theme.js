// Before the first paint, so that a chosen theme does not flash. The choice is the only thing that the console stores.
'use strict'
try {
  const chosen = localStorage.getItem('tallywire.theme')
  if (chosen === 'light' || chosen === 'dark') document.documentElement.dataset.theme = chosen
} catch { /* storage is closed to us: the system's theme it is */ }
