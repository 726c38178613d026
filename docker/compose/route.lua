-- Push each CT series once no image of it has come for StableAge seconds (docs/orthanc.md).
function OnStableSeries(seriesId, tags, metadata)
  if tags['Modality'] == 'CT' and not (metadata['1024'] == 'sent') then
    local body = {}
    body['Resources'] = { seriesId }
    body['Synchronous'] = false
    -- the last argument must be false, or plug-in addresses are not reached
    RestApiPost('/dicom-web/servers/tags/stow', DumpJson(body, true), false)
    RestApiPut('/series/' .. seriesId .. '/metadata/1024', 'sent', false)
  end
end
