"""The bundled teacher, the small world that it draws, and a judge that reads its pictures."""
